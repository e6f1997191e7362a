_base_ = [
    '../_base_/students/resnetv1d50_bce.py',
    '../_base_/teachers/beit-l14.py',
    '../_base_/methods/scalekd_beit.py',
    '../_base_/datasets/imagenet_bs256_randaug-m7_erase.py',
    '../_base_/schedules/imagenet_bs2048_lamb_300e.py',
    '../_base_/default_runtime.py',
]

_base_.distiller.connectors.s3_original.update(kappa=0.2)
_base_.distiller.connectors.s3_frequency.update(kappa=0.2)
_base_.distiller.connectors.s4_original.update(kappa=0.2)
_base_.distiller.connectors.s4_frequency.update(kappa=0.2)

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
    student_loss_weight=0.5,
    distiller=_base_.distiller,
)

optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
