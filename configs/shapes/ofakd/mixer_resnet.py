_base_ = [
    '../../_base_/pairs/mixer_resnet_shapes.py',
    '../../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
