_base_ = 'mmpretrain::_base_/models/resnet50.py'

student = _base_.pop('model')
