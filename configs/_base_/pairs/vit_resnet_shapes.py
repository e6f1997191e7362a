_base_ = [
    '../../quickstart/_base_/student.py',
    '../../quickstart/_base_/teacher.py',
    '../../quickstart/_base_/data.py',
    '../../quickstart/_base_/schedule.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=64,
    student_channels_last=True,
)
