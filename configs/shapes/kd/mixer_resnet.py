_base_ = [
    '../../_base_/pairs/mixer_resnet_shapes.py',
    '../../baselines/kd.py',
]

model = dict(distiller=_base_.distiller)
