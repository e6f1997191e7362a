# What configs/cifar_teachers/convnext-t_cifar100.py trains.
_base_ = 'mmpretrain::_base_/models/convnext/convnext-tiny.py'

teacher = _base_.pop('model')
teacher.head.num_classes = 100
teacher.train_cfg = None  # no Mixup, no CutMix
teacher_ckpt = 'work_dirs/convnext-t_cifar100/epoch_20.pth'
