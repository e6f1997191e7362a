_base_ = './kd.py'

# Each class by itself, for heads of several labels an image, or of one logit.
distiller = dict(
    distill_losses=dict(
        loss_kd=dict(
            _delete_=True,
            type='mmcakd.BinaryTargetLoss',
            mode='kl',
            tau=1.0,
            loss_weight=1.0,
        )
    )
)
