_base_ = [
    '../_base_/students/resnet50_syncbn.py',
    '../_base_/teachers/swin-s.py',
    '../_base_/methods/scalekd.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    '../_base_/default_runtime.py',
]

_base_.distiller.connectors.s3_original.num_heads = 3
_base_.distiller.connectors.s3_frequency.num_heads = 3
_base_.distiller.connectors.s4_original.num_heads = 6

# Stage 4 has no frequency view and there is no logit KD.
_base_.distiller.connectors.pop('s4_frequency')
_base_.distiller.student_recorders.pop('logits')
_base_.distiller.teacher_recorders.pop('logits')
_base_.distiller.distill_losses.pop('loss_s4_frequency')
_base_.distiller.distill_losses.pop('loss_kd')
_base_.distiller.loss_forward_mappings.pop('loss_s4_frequency')
_base_.distiller.loss_forward_mappings.pop('loss_kd')

model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_size=224,
    student_loss_weight=1.0,
    distiller=_base_.distiller,
)
