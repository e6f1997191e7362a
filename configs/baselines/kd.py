_base_ = '../_base_/methods/kd.py'

distiller = dict(
    distill_losses=dict(loss_kd=dict(mode='kl', tau=1.0, loss_weight=1.0))
)
