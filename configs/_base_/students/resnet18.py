_base_ = 'mmpretrain::_base_/models/resnet18.py'

student = _base_.pop('model')
