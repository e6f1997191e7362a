# Cross-entropy without label smoothing.
_base_ = 'mmpretrain::_base_/models/mobilenet_v2_1x.py'

student = _base_.pop('model')
