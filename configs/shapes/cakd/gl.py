_base_ = [
    '../../_base_/pairs/vit_resnet_shapes.py',
    '../../_base_/methods/cakd_gl.py',
]

# Ours: the gradient in the student is of the order of the label loss's.
_base_.distiller.distill_losses.loss_glp.loss_weight = 2.0

model = dict(distiller=_base_.distiller)
