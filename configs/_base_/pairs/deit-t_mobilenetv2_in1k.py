_base_ = [
    '../students/mobilenetv2.py',
    '../teachers/deit-t.py',
    '../datasets/imagenet_bs64_rrc.py',
    '../schedules/imagenet_sgd_100e.py',
    '../default_runtime.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
)
