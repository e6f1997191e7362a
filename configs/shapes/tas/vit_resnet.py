_base_ = [
    '../../_base_/pairs/vit_resnet_shapes.py',
    '../../_base_/methods/tas.py',
]

model = dict(distiller=_base_.distiller)

# No weight decay for the temperatures of InfoNCE; and for the projector the
# rate that attention wants, 1e-3.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'loss_nce': dict(decay_mult=0.0),
            'projector': dict(lr_mult=1 / 6),
        }
    )
)

default_hooks = dict(assistant=dict(type='mmcakd.AssistantAccuracyHook'))
