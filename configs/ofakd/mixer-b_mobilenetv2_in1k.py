_base_ = [
    '../_base_/pairs/mixer-b_mobilenetv2_in1k.py',
    '../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
