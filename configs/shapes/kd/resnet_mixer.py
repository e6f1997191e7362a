_base_ = [
    '../../_base_/pairs/resnet_mixer_shapes.py',
    '../../baselines/kd.py',
]

model = dict(distiller=_base_.distiller)
