# As timm prepares images: training crops are resized bilinearly or bicubically
# by chance; evaluation is bilinear, on the central 0.875 of an image.
_base_ = './cifar100_bs128_rrc.py'

train_pipeline = _base_.train_pipeline
train_pipeline[0] = dict(
    type='RandomChoice',
    transforms=[
        [
            dict(
                type='RandomResizedCrop',
                scale=224,
                backend='pillow',
                interpolation='bilinear',
            )
        ],
        [
            dict(
                type='RandomResizedCrop',
                scale=224,
                backend='pillow',
                interpolation='bicubic',
            )
        ],
    ],
)
test_pipeline = [
    dict(
        type='ResizeEdge',
        scale=256,
        edge='short',
        backend='pillow',
        interpolation='bilinear',
    ),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
