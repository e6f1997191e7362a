_base_ = './kd.py'

distiller = dict(
    distill_losses=dict(
        loss_kd=dict(
            _delete_=True,
            type='mmcakd.DISTLoss',
            beta=1.0,
            gamma=1.0,
            tau=1.0,
        )
    )
)
