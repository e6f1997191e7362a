# The combination is ours: MMSegmentation trains UPerNet with Swin-T for 160k
# iterations.
_base_ = './upernet_swin-t_8xb2-160k_ade20k-512x512.py'

_base_.param_scheduler[1].end = 80000

param_scheduler = _base_.param_scheduler
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
