# For tools/test.py with demo/vit-micro_shapes.pth.
_base_ = [
    './_base_/teacher.py',
    './_base_/data.py',
    './_base_/schedule.py',
]

model = _base_.teacher
