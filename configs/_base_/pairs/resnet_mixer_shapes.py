_base_ = [
    '../../quickstart/_base_/student_mixer.py',
    '../../quickstart/_base_/teacher_resnet.py',
    '../../quickstart/_base_/data.py',
    '../../quickstart/_base_/schedule_tokens.py',
]

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=64,
)
