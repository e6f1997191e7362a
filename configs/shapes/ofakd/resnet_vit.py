_base_ = [
    '../../_base_/pairs/resnet_vit_shapes.py',
    '../../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
