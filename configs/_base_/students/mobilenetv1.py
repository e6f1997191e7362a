# MMPretrain has no MobileNetV1: this is timm's, without a head of its own.
student = dict(
    type='ImageClassifier',
    backbone=dict(type='TIMMBackbone', model_name='mobilenetv1_100'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1024,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
        topk=(1, 5),
    ),
    _scope_='mmpretrain',
)
