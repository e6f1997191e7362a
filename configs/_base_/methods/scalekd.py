# ScaleKD as published for Swin-L -> ResNet-50. Widths and grids are read from
# the two models; other pairs change heads, kappa and weights. The weights of
# the views are those of 7x7 positions: with `per_position` they have the same
# effect on any grid, and on 7x7 they are the published ones.
distiller = dict(
    type='mmcakd.CrossArchDistiller',
    student_recorders=dict(
        stages=dict(type='mmcakd.StageOutputs'),
        logits=dict(type='mmcakd.Logits'),
    ),
    teacher_recorders=dict(
        stages=dict(type='mmcakd.StageOutputs'),
        logits=dict(type='mmcakd.Logits'),
    ),
    connectors=dict(
        # Stage 3 of the student, asked by learnable queries, in the shape of
        # stage 3 of the teacher: one projector a view.
        s3_original=dict(
            type='mmcakd.CAPConnector',
            num_heads=16,
            kappa=5.0,
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=2)
            ),
            shape_like=dict(recorder='stages', from_student=False, data_idx=2),
        ),
        s3_frequency=dict(
            type='mmcakd.CAPConnector',
            num_heads=16,
            kappa=5.0,
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=2)
            ),
            shape_like=dict(recorder='stages', from_student=False, data_idx=2),
        ),
        # What the frozen last stage of the teacher makes of both.
        tail=dict(
            type='mmcakd.TeacherReplay',
            from_stage=3,
            inputs=dict(
                original=dict(connector='s3_original'),
                frequency=dict(connector='s3_frequency'),
            ),
        ),
        # Stage 4 of the student, asked by what came of stage 3.
        s4_original=dict(
            type='mmcakd.CAPConnector',
            num_heads=24,
            kappa=5.0,
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=3),
                query=dict(connector='tail', connector_idx='original'),
            ),
        ),
        s4_frequency=dict(
            type='mmcakd.CAPConnector',
            num_heads=24,
            kappa=5.0,
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=3),
                query=dict(connector='tail', connector_idx='frequency'),
            ),
        ),
    ),
    distill_losses=dict(
        loss_s3_original=dict(
            type='mmcakd.DualViewLoss',
            view='original',
            loss_weight=0.08,
            per_position=True,
        ),
        loss_s3_frequency=dict(
            type='mmcakd.DualViewLoss',
            view='frequency',
            loss_weight=0.06,
            per_position=True,
        ),
        loss_s4_original=dict(
            type='mmcakd.DualViewLoss',
            view='original',
            loss_weight=0.08,
            per_position=True,
        ),
        loss_s4_frequency=dict(
            type='mmcakd.DualViewLoss',
            view='frequency',
            loss_weight=0.06,
            per_position=True,
        ),
        loss_kd=dict(type='mmcakd.SoftTargetLoss', tau=1.0, loss_weight=0.5),
    ),
    # Every view, of either stage, is compared with stage 4 of the teacher.
    loss_forward_mappings=dict(
        loss_s3_original=dict(
            student=dict(connector='tail', connector_idx='original'),
            teacher=dict(recorder='stages', from_student=False, data_idx=3),
        ),
        loss_s3_frequency=dict(
            student=dict(connector='tail', connector_idx='frequency'),
            teacher=dict(recorder='stages', from_student=False, data_idx=3),
        ),
        loss_s4_original=dict(
            student=dict(connector='s4_original'),
            teacher=dict(recorder='stages', from_student=False, data_idx=3),
        ),
        loss_s4_frequency=dict(
            student=dict(connector='s4_frequency'),
            teacher=dict(recorder='stages', from_student=False, data_idx=3),
        ),
        loss_kd=dict(
            student=dict(recorder='logits', from_student=True),
            teacher=dict(recorder='logits', from_student=False),
        ),
    ),
)
