# An MLP-Mixer of 0.2 M parameters for 64 px.
_base_ = './teacher_mixer.py'

_base_.pop('teacher_ckpt')
student = _base_.pop('teacher')
student.pop('data_preprocessor')
student.backbone.arch = dict(
    embed_dims=64, num_layers=4, tokens_mlp_dims=64, channels_mlp_dims=256
)
student.head.in_channels = 64
