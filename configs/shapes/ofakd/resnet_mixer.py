_base_ = [
    '../../_base_/pairs/resnet_mixer_shapes.py',
    '../../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
