custom_imports = dict(
    imports=['mmcakd', 'mmpretrain.models'], allow_failed_imports=False
)
backbone = dict(
    _delete_=True,
    type='mmpretrain.MobileNetV2',
    # The last blocks of each stride: 24, 32, 96 and 320 channels. The 1x1
    # convolution to 1280 channels behind them serves the classifier: neither
    # YOLOv3 of MMDetection nor any recipe of MMSegmentation reads it.
    out_indices=(1, 2, 4, 6),
    # As for a ResNet: what comes before the first output stays as it was
    # trained, and so do all statistics of BatchNorm.
    frozen_stages=2,
    norm_eval=True,
    init_cfg=dict(
        type='Pretrained', checkpoint='student.pth', prefix='backbone.'
    ),
)
backbone_weights = dict(new=[], unused=[])

# MMPretrain builds the 1x1 convolution, read or not; it has no gradient.
find_unused_parameters = True
