_base_ = [
    '../../_base_/pairs/vit_resnet_shapes.py',
    '../../_base_/methods/cakd.py',
    '../../_base_/methods/cakd_training.py',
]

# Ours: the gradient in the student is of the order of the label loss's.
_base_.distiller.distill_losses.loss_glp.loss_weight = 2.0
_base_.distiller.distill_losses.loss_pca.update(
    attn_weight=4.0, gram_weight=0.1
)
# For a schedule of 1600 steps, in 320 of which the discriminator learns.
_base_.discriminator_optim.optimizer.lr = 1e-3
# One token of the teacher, as 16 px are at 224 px.
_base_.multi_view.view_generator.mask_size = 8

model = dict(distiller=_base_.distiller, **_base_.multi_view)

optim_wrapper = dict(
    _delete_=True,
    constructor='mmcakd.AdversarialOptimWrapperConstructor',
    student=_base_.optim_wrapper,
    discriminator=_base_.discriminator_optim,
)
