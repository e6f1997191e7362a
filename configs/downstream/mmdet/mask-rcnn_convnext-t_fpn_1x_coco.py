# The combination is ours: the recipe is that of Swin-T with the optimizer of
# MMDetection's 36 epochs for ConvNeXt-T.
_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    '../_base_/backbone_convnext-t.py',
    '../_base_/convnext_adamw.py',
]

custom_imports = dict(
    imports=['mmcakd', 'mmpretrain.models'], allow_failed_imports=False
)

model = dict(backbone=_base_.pop('backbone'))

optim_wrapper = _base_.pop('convnext_optim_wrapper')
