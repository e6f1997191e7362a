_base_ = [
    '../_base_/pairs/swin-t_resnet18_cifar100.py',
    '../_base_/methods/ofakd.py',
]

_base_.distiller.distill_losses.loss_ofa.loss_weight = 0.1

model = dict(distiller=_base_.distiller)

_base_.param_scheduler[0].start_factor = 1e-4 / 0.1

optim_wrapper = dict(optimizer=dict(lr=0.1))
