_base_ = [
    '../../_base_/pairs/vit_resnet_shapes.py',
    '../../_base_/methods/kd.py',
]

model = dict(distiller=_base_.distiller)
_base_.distiller.distill_losses.loss_kd.loss_weight = 1.0
