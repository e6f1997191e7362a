_base_ = [
    '../_base_/pairs/resnet50_deit-t_in1k.py',
    '../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
