# Blocks as they are, without the final norm.
distiller = dict(
    type='mmcakd.CrossArchDistiller',
    student_recorders=dict(
        stages=dict(type='mmcakd.StageOutputs', final_norm=False)
    ),
    teacher_recorders=dict(
        stages=dict(type='mmcakd.StageOutputs', final_norm=False)
    ),
    connectors=dict(
        s1=dict(
            type='mmcakd.FitNetConnector',
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=0)
            ),
            shape_like=dict(recorder='stages', from_student=False, data_idx=0),
        ),
        s2=dict(
            type='mmcakd.FitNetConnector',
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=1)
            ),
            shape_like=dict(recorder='stages', from_student=False, data_idx=1),
        ),
        s3=dict(
            type='mmcakd.FitNetConnector',
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=2)
            ),
            shape_like=dict(recorder='stages', from_student=False, data_idx=2),
        ),
        s4=dict(
            type='mmcakd.FitNetConnector',
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=3)
            ),
            shape_like=dict(recorder='stages', from_student=False, data_idx=3),
        ),
    ),
    distill_losses=dict(
        loss_s1=dict(type='mmcakd.MSELoss'),
        loss_s2=dict(type='mmcakd.MSELoss'),
        loss_s3=dict(type='mmcakd.MSELoss'),
        loss_s4=dict(type='mmcakd.MSELoss'),
    ),
    loss_forward_mappings=dict(
        loss_s1=dict(
            student=dict(connector='s1'),
            teacher=dict(recorder='stages', from_student=False, data_idx=0),
        ),
        loss_s2=dict(
            student=dict(connector='s2'),
            teacher=dict(recorder='stages', from_student=False, data_idx=1),
        ),
        loss_s3=dict(
            student=dict(connector='s3'),
            teacher=dict(recorder='stages', from_student=False, data_idx=2),
        ),
        loss_s4=dict(
            student=dict(connector='s4'),
            teacher=dict(recorder='stages', from_student=False, data_idx=3),
        ),
    ),
)
