# What configs/cifar_teachers/mixer-b_cifar100.py trains.
_base_ = 'mmpretrain::_base_/models/mlp_mixer_base_patch16.py'

teacher = _base_.pop('model')
teacher.head.num_classes = 100
teacher.head.loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1)
teacher_ckpt = 'work_dirs/mixer-b_cifar100/epoch_20.pth'
