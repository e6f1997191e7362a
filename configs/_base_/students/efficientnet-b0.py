_base_ = 'mmpretrain::_base_/models/efficientnet_b0.py'

student = _base_.pop('model')
