_base_ = [
    '../../_base_/pairs/resnet_vit_shapes.py',
    '../../_base_/methods/tas_pair.py',
]

model = dict(distiller=_base_.distiller)

# The temperatures of InfoNCE.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'loss_nce': dict(decay_mult=0.0)})
)
