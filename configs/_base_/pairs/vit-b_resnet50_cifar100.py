_base_ = [
    '../students/resnet50_cifar100.py',
    '../teachers/vit-b_cifar100.py',
    '../datasets/cifar100_bs8_rrc.py',
    '../schedules/cifar100_sgd_200e.py',
    '../default_runtime.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
)
