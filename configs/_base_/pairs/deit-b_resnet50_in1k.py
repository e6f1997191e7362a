_base_ = [
    '../students/resnet50.py',
    '../teachers/vit-b16.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py',
    '../schedules/imagenet_sgd_120e.py',
    '../default_runtime.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
)
