# What configs/cifar_teachers/vit-s_cifar100.py trains.
teacher = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch='deit-small',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=100,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
    ),
    _scope_='mmpretrain',
)
teacher_ckpt = 'work_dirs/vit-s_cifar100/epoch_20.pth'
