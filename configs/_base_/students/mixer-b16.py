_base_ = 'mmpretrain::_base_/models/mlp_mixer_base_patch16.py'

student = _base_.pop('model')
student.backbone.update(drop_rate=0.0, drop_path_rate=0.1)
