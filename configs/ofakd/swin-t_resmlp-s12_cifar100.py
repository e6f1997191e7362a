_base_ = [
    '../_base_/pairs/swin-t_resmlp-s12_cifar100.py',
    '../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
