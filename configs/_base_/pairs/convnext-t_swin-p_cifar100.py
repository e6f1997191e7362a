_base_ = [
    '../students/swin-p_cifar100.py',
    '../teachers/convnext-t_cifar100.py',
    '../datasets/cifar100_bs128_randaug-m9_erase_crop90.py',
    '../schedules/cifar100_adamw_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
)
