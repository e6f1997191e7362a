# CAKD the other way: a CNN teaches a ViT. Ours, after the abstract of the
# journal version, which names inverse projectors and a router but has no
# formula. As in the other direction, the CNN's map is the one at stride 16.
distiller = dict(
    type='mmcakd.CrossArchDistiller',
    student_recorders=dict(
        stages=dict(type='mmcakd.StageOutputs'),
        qkv=dict(type='mmcakd.QKV', block=-1),
    ),
    teacher_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
    connectors=dict(
        iglp=dict(
            type='mmcakd.GLPConnector',
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=-1)
            ),
            shape_like=dict(recorder='stages', from_student=False, data_idx=2),
        ),
        ipca=dict(
            type='mmcakd.InversePCAConnector',
            inputs=dict(
                qkv=dict(recorder='qkv', from_student=True),
                feature=dict(
                    recorder='stages', from_student=False, data_idx=2
                ),
            ),
        ),
        router=dict(
            type='mmcakd.RouterConnector',
            inputs=dict(
                student=dict(recorder='stages', from_student=True),
                teacher=dict(recorder='stages', from_student=False),
            ),
        ),
    ),
    distill_losses=dict(
        loss_iglp=dict(type='mmcakd.MSELoss', loss_weight=1.0),
        loss_ipca=dict(type='mmcakd.PCALoss', gram_weight=0.1),
        # About 80 epochs of ImageNet in batches of 1024 images.
        loss_router=dict(
            type='mmcakd.RouterLoss', anneal_iters=100_000, loss_weight=1.0
        ),
    ),
    loss_forward_mappings=dict(
        loss_iglp=dict(
            student=dict(connector='iglp'),
            teacher=dict(recorder='stages', from_student=False, data_idx=2),
        ),
        loss_ipca=dict(
            student=dict(connector='ipca', connector_idx='student'),
            teacher=dict(connector='ipca', connector_idx='teacher'),
        ),
        loss_router=dict(
            student=dict(connector='router', connector_idx='student'),
            teacher=dict(connector='router', connector_idx='teacher'),
        ),
    ),
)
