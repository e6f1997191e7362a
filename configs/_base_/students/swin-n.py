# Swin-Nano of OFA-KD; its base has label smoothing, Mixup and CutMix.
_base_ = 'mmpretrain::_base_/models/swin_transformer/tiny_224.py'

student = _base_.pop('model')
student.backbone.update(
    arch=dict(embed_dims=64, depths=[2, 2, 2, 2], num_heads=[2, 4, 8, 16]),
    drop_path_rate=0.0,
)
student.head.in_channels = 512
