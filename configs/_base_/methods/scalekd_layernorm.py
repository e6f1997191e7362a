# As published for students normalised by layers: ConvNeXt and Swin. The one
# published config of ConvNeXt-T names BatchNorm in the projectors, that of
# Swin-T layer normalisation; both have the latter here.
_base_ = './scalekd.py'

distiller = dict(
    connectors=dict(
        s3_original=dict(kappa=1.0, norm_cfg=dict(type='LN2d')),
        s3_frequency=dict(kappa=1.0, norm_cfg=dict(type='LN2d')),
        s4_original=dict(kappa=1.0, norm_cfg=dict(type='LN2d')),
        s4_frequency=dict(kappa=1.0, norm_cfg=dict(type='LN2d')),
    )
)
