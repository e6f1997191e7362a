_base_ = [
    './_base_/student.py',
    './_base_/data.py',
    './_base_/schedule.py',
]

model = _base_.student
