_base_ = [
    '../../_base_/pairs/vit_resnet_shapes.py',
    '../../_base_/methods/tas_logits.py',
]

model = dict(distiller=_base_.distiller)

# The rate that attention wants, 1e-3.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'projector': dict(lr_mult=1 / 6)})
)

default_hooks = dict(assistant=dict(type='mmcakd.AssistantAccuracyHook'))
