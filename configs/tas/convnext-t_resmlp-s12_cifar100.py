_base_ = [
    '../_base_/pairs/convnext-t_resmlp-s12_cifar100.py',
    '../_base_/methods/tas.py',
]

model = dict(distiller=_base_.distiller)

# The temperatures of InfoNCE.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'loss_nce': dict(decay_mult=0.0)})
)

default_hooks = dict(assistant=dict(type='mmcakd.AssistantAccuracyHook'))
