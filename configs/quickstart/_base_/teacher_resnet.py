# The quick start's student, taught by demo/train_teacher.py.
_base_ = './student.py'

teacher = _base_.pop('student')
teacher.type = 'mmpretrain.ImageClassifier'
teacher.data_preprocessor = dict(
    mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True
)
teacher_ckpt = 'demo/resnet-micro_shapes.pth'
