_base_ = [
    '../_base_/students/mixer-b14.py',
    '../_base_/teachers/beit-l14.py',
    '../_base_/methods/scalekd_beit.py',
    '../_base_/datasets/imagenet_bs192_randaug-m12_erase.py',
    '../_base_/schedules/imagenet_bs1536_adamw_300e.py',
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
