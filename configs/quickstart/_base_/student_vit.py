# A ViT of 0.3 M parameters for 64 px.
_base_ = './teacher.py'

_base_.pop('teacher_ckpt')
student = _base_.pop('teacher')
student.pop('data_preprocessor')
student.backbone.arch = dict(
    embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256
)
student.head.in_channels = 64
