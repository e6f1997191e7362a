_base_ = [
    '../_base_/students/vit-b14.py',
    '../_base_/teachers/beit-l14.py',
    '../_base_/methods/scalekd_beit.py',
    '../_base_/datasets/imagenet_bs128_randaug-m9_erase.py',
    '../_base_/schedules/imagenet_bs1024_adamw_300e.py',
    '../_base_/default_runtime.py',
]

_base_.distiller.student_recorders.stages.blocks = (1, 3, 8, 11)

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
    student_loss_weight=0.5,
    distiller=_base_.distiller,
)

# No weight decay on the position embedding, as MMPretrain trains DeiT.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.pos_embed': dict(decay_mult=0.0)})
)

custom_hooks = []  # no EMA
