_base_ = './cc.py'

# Its memory needs `mmcakd.TrainingSetHook`, which the default runtime has, and
# batches that are not mixed.
distiller = dict(
    distill_losses=dict(
        _delete_=True,
        loss_crd=dict(
            type='mmcakd.CRDLoss',
            embed_dims=128,
            num_negatives=16384,
            temperature=0.07,
            momentum=0.5,
        ),
    ),
    loss_forward_mappings=dict(
        _delete_=True,
        loss_crd=dict(
            student=dict(connector='embed_student'),
            teacher=dict(connector='embed_teacher'),
            index=dict(label='index'),
            label=dict(label='hard'),
        ),
    ),
)
