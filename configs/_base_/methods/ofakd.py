# OFA-KD: the logits of the student, and those of a head at each of its stages,
# learn from the teacher's logits.
distiller = dict(
    type='mmcakd.CrossArchDistiller',
    student_recorders=dict(
        # As the network has them: with class token, before the final norm.
        stages=dict(
            type='mmcakd.StageOutputs', final_norm=False, extra_tokens=True
        ),
        logits=dict(type='mmcakd.Logits'),
    ),
    teacher_recorders=dict(
        stages=dict(type='mmcakd.StageOutputs'),
        logits=dict(type='mmcakd.Logits'),
    ),
    connectors=dict(
        heads=dict(
            type='mmcakd.OFAHeadConnector',
            inputs=dict(stages=dict(recorder='stages', from_student=True)),
            # Read once, for the width of the heads and the classes.
            shape_like=dict(
                feature=dict(
                    recorder='stages', from_student=False, data_idx=-1
                ),
                logits=dict(recorder='logits', from_student=False),
            ),
        )
    ),
    distill_losses=dict(
        loss_kd=dict(type='mmcakd.OFALoss', eps=1.0, loss_weight=1.0),
        # `eps` may be a list, one value for each stage.
        loss_ofa=dict(type='mmcakd.OFALoss', eps=1.0, loss_weight=1.0),
    ),
    loss_forward_mappings=dict(
        loss_kd=dict(
            student=dict(recorder='logits', from_student=True),
            teacher=dict(recorder='logits', from_student=False),
            label=dict(label='auto'),
        ),
        loss_ofa=dict(
            student=dict(connector='heads'),
            teacher=dict(recorder='logits', from_student=False),
            label=dict(label='auto'),
        ),
    ),
)
