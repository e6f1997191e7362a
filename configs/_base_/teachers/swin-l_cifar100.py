# What configs/cifar_teachers/swin-l_cifar100.py trains.
_base_ = 'mmpretrain::_base_/models/swin_transformer/large_224.py'

teacher = _base_.pop('model')
teacher.head.update(
    num_classes=100,
    topk=(1,),
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
)
teacher_ckpt = 'work_dirs/swin-l_cifar100/epoch_20.pth'
