# TAS: the assistant has the early stages of one model and the last of the
# other. Student and assistant learn from the teacher, and the student from the
# assistant: pooled features by InfoNCE, logits by the loss of OFA-KD.
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
        assistant=dict(
            type='mmcakd.AssistantConnector',
            inputs=dict(
                student=dict(recorder='stages', from_student=True, data_idx=2),
                teacher=dict(
                    recorder='stages', from_student=False, data_idx=2
                ),
            ),
        ),
        # A linear layer where two widths differ.
        assistant_to_teacher=dict(
            type='mmcakd.PooledEmbedding',
            embed_dims=None,
            inputs=dict(
                feature=dict(connector='assistant', connector_idx='feature')
            ),
            shape_like=dict(
                recorder='stages', from_student=False, data_idx=-1
            ),
        ),
        student_to_assistant=dict(
            type='mmcakd.PooledEmbedding',
            embed_dims=None,
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=-1)
            ),
            shape_like=dict(connector='assistant', connector_idx='feature'),
        ),
        student_to_teacher=dict(
            type='mmcakd.PooledEmbedding',
            embed_dims=None,
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=-1)
            ),
            shape_like=dict(
                recorder='stages', from_student=False, data_idx=-1
            ),
        ),
    ),
    distill_losses=dict(
        loss_nce_teacher_student=dict(type='mmcakd.InfoNCELoss'),
        loss_nce_teacher_assistant=dict(type='mmcakd.InfoNCELoss'),
        # With detach_teacher=False the student teaches the assistant, too.
        loss_nce_assistant_student=dict(type='mmcakd.InfoNCELoss'),
        loss_ofa_teacher_student=dict(type='mmcakd.OFALoss'),
        loss_ofa_teacher_assistant=dict(type='mmcakd.OFALoss'),
        loss_ofa_assistant_student=dict(type='mmcakd.OFALoss'),
        # Remove it, here and below, for an assistant without labels.
        loss_assistant=dict(
            type='mmpretrain.LabelSmoothLoss',
            label_smooth_val=0.1,
            mode='original',
        ),
    ),
    loss_forward_mappings=dict(
        loss_nce_teacher_student=dict(
            student=dict(connector='student_to_teacher'),
            teacher=dict(recorder='stages', from_student=False, data_idx=-1),
        ),
        loss_nce_teacher_assistant=dict(
            student=dict(connector='assistant_to_teacher'),
            teacher=dict(recorder='stages', from_student=False, data_idx=-1),
        ),
        loss_nce_assistant_student=dict(
            student=dict(connector='student_to_assistant'),
            teacher=dict(connector='assistant', connector_idx='feature'),
        ),
        loss_ofa_teacher_student=dict(
            student=dict(recorder='logits', from_student=True),
            teacher=dict(recorder='logits', from_student=False),
            label=dict(label='auto'),
        ),
        loss_ofa_teacher_assistant=dict(
            student=dict(connector='assistant', connector_idx='logits'),
            teacher=dict(recorder='logits', from_student=False),
            label=dict(label='auto'),
        ),
        loss_ofa_assistant_student=dict(
            student=dict(recorder='logits', from_student=True),
            teacher=dict(connector='assistant', connector_idx='logits'),
            label=dict(label='auto'),
        ),
        loss_assistant=dict(
            cls_score=dict(connector='assistant', connector_idx='logits'),
            label=dict(label='auto'),
        ),
    ),
)
