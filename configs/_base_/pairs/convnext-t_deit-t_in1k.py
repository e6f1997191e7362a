_base_ = [
    '../students/deit-t.py',
    '../teachers/convnext-t.py',
    '../datasets/imagenet_bs128_randaug-m9_erase.py',
    '../schedules/imagenet_adamw_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
)
