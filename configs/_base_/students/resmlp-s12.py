# MMPretrain has no ResMLP: this is timm's. As a pyramid of one level it gives
# its last block as a map, which MMPretrain can pool; what timm has behind it,
# a scale and a shift per channel, is left to the linear classifier.
student = dict(
    type='ImageClassifier',
    backbone=dict(
        type='TIMMBackbone',
        model_name='resmlp_12_224',
        features_only=True,
        out_indices=[11],
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
    ),
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
    _scope_='mmpretrain',
)
