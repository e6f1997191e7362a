_base_ = [
    '../_base_/pairs/swin-t_mobilenetv2_cifar100.py',
    '../_base_/methods/ofakd.py',
]

_base_.distiller.distill_losses.loss_ofa.loss_weight = 0.1

model = dict(distiller=_base_.distiller)
