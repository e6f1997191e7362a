# What configs/cifar_teachers/vit-b_cifar100.py trains.
_base_ = './vit-s_cifar100.py'

teacher = dict(backbone=dict(arch='base'), head=dict(in_channels=768))
teacher_ckpt = 'work_dirs/vit-b_cifar100/epoch_20.pth'
