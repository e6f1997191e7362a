_base_ = [
    '../_base_/pairs/swin-t_resnet18_cifar100.py',
    '../_base_/methods/tas.py',
]

model = dict(distiller=_base_.distiller)

_base_.param_scheduler[0].start_factor = 1e-4 / 0.1

optim_wrapper = dict(
    # OFA-KD's for this pair; that it is TAS's as well is our reading.
    optimizer=dict(lr=0.1),
    # The temperatures of InfoNCE.
    paramwise_cfg=dict(custom_keys={'loss_nce': dict(decay_mult=0.0)}),
)

default_hooks = dict(assistant=dict(type='mmcakd.AssistantAccuracyHook'))
