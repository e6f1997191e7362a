_base_ = [
    '../../_base_/pairs/vit_mixer_shapes.py',
    '../../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
