_base_ = 'mmpretrain::_base_/models/convnext/convnext-tiny.py'

student = _base_.pop('model')
student.train_cfg = None  # no Mixup, no CutMix
