# Logit distillation: soft cross-entropy beside the labels. The algorithm's
# `student_loss_weight` is the other half.
distiller = dict(
    type='mmcakd.CrossArchDistiller',
    student_recorders=dict(logits=dict(type='mmcakd.Logits')),
    teacher_recorders=dict(logits=dict(type='mmcakd.Logits')),
    distill_losses=dict(
        loss_kd=dict(type='mmcakd.SoftTargetLoss', tau=1.0, loss_weight=0.5)
    ),
    loss_forward_mappings=dict(
        loss_kd=dict(
            student=dict(recorder='logits', from_student=True),
            teacher=dict(recorder='logits', from_student=False),
        )
    ),
)
