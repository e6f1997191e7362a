_base_ = [
    '../students/mobilenetv2_cifar100.py',
    '../teachers/mixer-b_cifar100.py',
    '../datasets/cifar100_bs128_rrc_crop875.py',
    '../schedules/cifar100_sgd_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
)
