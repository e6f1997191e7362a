# 0.1 for 8 x 32 images, a tenth of it after 30, 60 and 90 epochs; weight decay
# 1e-4.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

train_cfg = dict(max_epochs=120)
