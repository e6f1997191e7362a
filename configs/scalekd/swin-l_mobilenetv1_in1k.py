_base_ = [
    '../_base_/students/mobilenetv1.py',
    '../_base_/teachers/swin-l.py',
    '../_base_/methods/scalekd.py',
    '../_base_/datasets/imagenet_bs256_randaug-m7.py',
    '../_base_/schedules/imagenet_bs2048_lamb_300e.py',
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

optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.004))
