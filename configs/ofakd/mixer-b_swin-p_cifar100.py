_base_ = [
    '../_base_/pairs/mixer-b_swin-p_cifar100.py',
    '../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
