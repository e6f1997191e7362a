# A ResNet of 0.7 M parameters for 64 px.
student = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        stem_channels=16,
        base_channels=16,
        strides=(2, 2, 2, 2),
        zero_init_residual=False,  # which needs a longer schedule
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=24, in_channels=128),
)
