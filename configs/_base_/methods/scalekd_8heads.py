# As published for students of one width: plain ViTs and MLPs.
_base_ = './scalekd.py'

distiller = dict(
    connectors=dict(
        s3_original=dict(num_heads=8),
        s3_frequency=dict(num_heads=8),
        s4_original=dict(num_heads=8),
        s4_frequency=dict(num_heads=8),
    )
)
