# Attention and token MLPs want smaller steps than convolutions.
_base_ = './schedule.py'

optim_wrapper = dict(optimizer=dict(lr=1e-3))
