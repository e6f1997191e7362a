# A ViT of 0.8 M parameters; demo/train_teacher.py made its weights.
teacher = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True
    ),
    backbone=dict(
        type='VisionTransformer',
        arch=dict(
            embed_dims=96, num_layers=6, num_heads=3, feedforward_channels=384
        ),
        img_size=64,
        patch_size=8,
        patch_cfg=dict(conv_type='mmcakd.ConvStem'),
        with_cls_token=False,
        out_type='featmap',
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=24, in_channels=96),
)
teacher_ckpt = 'demo/vit-micro_shapes.pth'
