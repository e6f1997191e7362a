_base_ = 'mmpretrain::_base_/models/swin_transformer/tiny_224.py'

student = _base_.pop('model')
student.backbone.drop_path_rate = 0.05
student.train_cfg = None  # no Mixup, no CutMix
