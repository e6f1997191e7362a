_base_ = [
    '../students/deit-s.py',
    '../teachers/resnet50.py',
    '../datasets/imagenet_bs128_randaug-m9_erase.py',
    '../schedules/imagenet_deit_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
)
