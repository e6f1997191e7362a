_base_ = [
    '../_base_/students/resnet50_syncbn.py',
    '../_base_/teachers/swin-l.py',
    '../_base_/methods/scalekd.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
    student_loss_weight=0.5,
    distiller=_base_.distiller,
)
