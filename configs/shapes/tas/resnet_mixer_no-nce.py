_base_ = [
    '../../_base_/pairs/resnet_mixer_shapes.py',
    '../../_base_/methods/tas_logits.py',
]

model = dict(distiller=_base_.distiller)

default_hooks = dict(assistant=dict(type='mmcakd.AssistantAccuracyHook'))
