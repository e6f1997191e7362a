_base_ = 'mmpretrain::_base_/models/mobilenet_v2_1x.py'

student = _base_.pop('model')
student.head.loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1)
