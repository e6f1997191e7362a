_base_ = [
    '../_base_/pairs/convnext-t_deit-t_cifar100.py',
    '../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
