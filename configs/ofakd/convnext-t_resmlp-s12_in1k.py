_base_ = [
    '../_base_/pairs/convnext-t_resmlp-s12_in1k.py',
    '../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
