_base_ = [
    '../_base_/pairs/vit-b_resnet50_cifar100.py',
    '../_base_/methods/cakd.py',
    '../_base_/methods/cakd_training.py',
]

model = dict(distiller=_base_.distiller, **_base_.multi_view)

optim_wrapper = dict(
    _delete_=True,
    constructor='mmcakd.AdversarialOptimWrapperConstructor',
    student=_base_.optim_wrapper,
    discriminator=_base_.discriminator_optim,
)
