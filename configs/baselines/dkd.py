_base_ = './kd.py'

distiller = dict(
    distill_losses=dict(
        loss_kd=dict(
            _delete_=True,
            type='mmcakd.DKDLoss',
            alpha=1.0,
            beta=2.0,
            tau=1.0,
        )
    ),
    # Of mixed labels, the larger share is the target class.
    loss_forward_mappings=dict(loss_kd=dict(label=dict(label='auto'))),
)
