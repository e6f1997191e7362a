_base_ = [
    '../../_base_/pairs/vit_resnet_shapes.py',
    '../../baselines/kd.py',
]

model = dict(distiller=_base_.distiller)
