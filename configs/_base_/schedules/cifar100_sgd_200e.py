# 0.1 for 8 x 8 images, a tenth of it after 100 and 150 epochs.
_base_ = 'mmpretrain::_base_/schedules/cifar10_bs128.py'

auto_scale_lr = dict(base_batch_size=64)
