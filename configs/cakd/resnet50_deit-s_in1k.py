_base_ = [
    '../_base_/pairs/resnet50_deit-s_in1k.py',
    '../_base_/methods/cakd_inverse.py',
]

model = dict(distiller=_base_.distiller)
