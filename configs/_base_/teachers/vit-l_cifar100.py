# What configs/cifar_teachers/vit-l_cifar100.py trains.
_base_ = 'mmpretrain::_base_/models/deit3/deit3-large-p16-224.py'

teacher = _base_.pop('model')
teacher.backbone.drop_path_rate = 0.1
teacher.head.num_classes = 100
teacher.train_cfg = None  # no Mixup, no CutMix
teacher_ckpt = 'work_dirs/vit-l_cifar100/epoch_20.pth'
