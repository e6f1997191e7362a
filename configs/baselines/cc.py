distiller = dict(
    type='mmcakd.CrossArchDistiller',
    student_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
    teacher_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
    connectors=dict(
        embed_student=dict(
            type='mmcakd.PooledEmbedding',
            embed_dims=128,
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=-1)
            ),
        ),
        embed_teacher=dict(
            type='mmcakd.PooledEmbedding',
            embed_dims=128,
            inputs=dict(
                feature=dict(
                    recorder='stages', from_student=False, data_idx=-1
                )
            ),
        ),
    ),
    distill_losses=dict(loss_cc=dict(type='mmcakd.CCLoss', loss_weight=0.02)),
    loss_forward_mappings=dict(
        loss_cc=dict(
            student=dict(connector='embed_student'),
            teacher=dict(connector='embed_teacher'),
        )
    ),
)
