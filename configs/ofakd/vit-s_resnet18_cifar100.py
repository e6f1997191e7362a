_base_ = [
    '../_base_/pairs/vit-s_resnet18_cifar100.py',
    '../_base_/methods/ofakd.py',
]

model = dict(distiller=_base_.distiller)
