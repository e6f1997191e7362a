# As MMPretrain trains DeiT-S: 1e-3 for 8 x 128 images.
_base_ = './cifar100_adamw_300e.py'

optim_wrapper = dict(optimizer=dict(lr=1e-3))
