_base_ = [
    '../../quickstart/_base_/student_mixer.py',
    '../../quickstart/_base_/data.py',
    '../../quickstart/_base_/schedule_tokens.py',
]

model = _base_.student
