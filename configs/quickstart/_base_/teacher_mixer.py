# An MLP-Mixer of 0.7 M parameters; demo/train_teacher.py made its weights.
teacher = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True
    ),
    backbone=dict(
        type='MlpMixer',
        arch=dict(
            embed_dims=96,
            num_layers=6,
            tokens_mlp_dims=128,
            channels_mlp_dims=384,
        ),
        img_size=64,
        patch_size=8,
        patch_cfg=dict(conv_type='mmcakd.ConvStem'),
    ),
    neck=dict(type='GlobalAveragePooling', dim=1),
    head=dict(type='LinearClsHead', num_classes=24, in_channels=96),
)
teacher_ckpt = 'demo/mixer-micro_shapes.pth'
