# For a schedule of minutes: attention as it is, and a quarter of the published
# weights, summed over a grid of 8x8.
_base_ = '../../_base_/methods/scalekd.py'

distiller = dict(
    connectors=dict(
        s3_original=dict(num_heads=3, kappa=1.0),
        s3_frequency=dict(num_heads=3, kappa=1.0),
        s4_original=dict(num_heads=3, kappa=1.0),
        s4_frequency=dict(num_heads=3, kappa=1.0),
    ),
    distill_losses=dict(
        loss_s3_original=dict(loss_weight=0.02, per_position=False),
        loss_s3_frequency=dict(loss_weight=0.015, per_position=False),
        loss_s4_original=dict(loss_weight=0.02, per_position=False),
        loss_s4_frequency=dict(loss_weight=0.015, per_position=False),
    ),
)
