distiller = dict(
    type='mmcakd.CrossArchDistiller',
    student_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
    teacher_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
    distill_losses=dict(
        loss_rkd=dict(
            type='mmcakd.RKDLoss', distance_weight=25.0, angle_weight=50.0
        )
    ),
    loss_forward_mappings=dict(
        loss_rkd=dict(
            student=dict(recorder='stages', from_student=True, data_idx=-1),
            teacher=dict(recorder='stages', from_student=False, data_idx=-1),
        )
    ),
)
