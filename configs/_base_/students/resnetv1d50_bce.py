_base_ = 'mmpretrain::_base_/models/resnetv1d50.py'

student = _base_.pop('model')
# Binary cross-entropy of every class, summed over the classes. Smoothing by
# zero turns the labels into one-hot targets.
student.head.loss = dict(
    type='LabelSmoothLoss', label_smooth_val=0.0, use_sigmoid=True
)
