_base_ = [
    './_base_/student.py',
    './_base_/teacher.py',
    './_base_/scalekd.py',
    './_base_/data.py',
    './_base_/schedule.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=64,
    student_loss_weight=0.5,
    student_channels_last=True,
    distiller=_base_.distiller,
)

# Attention wants a lower learning rate than the convolutions of the student.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'distiller': dict(lr_mult=0.5)})
)
