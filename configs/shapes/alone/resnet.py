_base_ = [
    '../../quickstart/_base_/student.py',
    '../../quickstart/_base_/data.py',
    '../../quickstart/_base_/schedule.py',
]

model = _base_.student
