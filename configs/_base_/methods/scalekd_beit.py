# As published for BEiT-L/14: its maps have 256 positions, which weigh less
# each. The weights are of the sum over them.
_base_ = './scalekd_8heads.py'

distiller = dict(
    connectors=dict(
        s3_original=dict(kappa=1.0),
        s3_frequency=dict(kappa=1.0),
        s4_original=dict(kappa=1.0),
        s4_frequency=dict(kappa=1.0),
    ),
    distill_losses=dict(
        loss_s3_original=dict(loss_weight=0.016, per_position=False),
        loss_s3_frequency=dict(loss_weight=0.008, per_position=False),
        loss_s4_original=dict(loss_weight=0.016, per_position=False),
        loss_s4_frequency=dict(loss_weight=0.008, per_position=False),
    ),
)
