# CAKD's group-wise linear projector alone: the student's map at stride 16, its
# third stage, learns the teacher's final patch tokens.
distiller = dict(
    type='mmcakd.CrossArchDistiller',
    student_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
    teacher_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
    connectors=dict(
        glp=dict(
            type='mmcakd.GLPConnector',
            dropout=0.1,  # ours: the paper gives no rate
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=2)
            ),
            shape_like=dict(
                recorder='stages', from_student=False, data_idx=-1
            ),
        )
    ),
    distill_losses=dict(
        # The paper's squared distance, as a mean over all elements.
        loss_glp=dict(type='mmcakd.MSELoss', loss_weight=1.0)
    ),
    loss_forward_mappings=dict(
        loss_glp=dict(
            student=dict(connector='glp'),
            teacher=dict(recorder='stages', from_student=False, data_idx=-1),
        )
    ),
)
