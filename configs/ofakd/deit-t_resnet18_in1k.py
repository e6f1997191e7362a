_base_ = [
    '../_base_/pairs/deit-t_resnet18_in1k.py',
    '../_base_/methods/ofakd.py',
]

_base_.distiller.distill_losses.loss_kd.eps = 1.5
_base_.distiller.distill_losses.loss_ofa.eps = 1.5

model = dict(distiller=_base_.distiller)
