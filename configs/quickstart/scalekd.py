_base_ = [
    './_base_/student.py',
    './_base_/teacher.py',
    '../_base_/methods/scalekd.py',
    './_base_/data.py',
    './_base_/schedule.py',
]

_base_.distiller.connectors.s3_original.update(num_heads=3)
_base_.distiller.connectors.s3_frequency.update(num_heads=3)
_base_.distiller.connectors.s4_original.update(num_heads=3)
_base_.distiller.connectors.s4_frequency.update(num_heads=3)

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=64,
    student_loss_weight=0.5,
    distiller=_base_.distiller,
)
