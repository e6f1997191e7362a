# The combination is ours: the recipe is that of ResNet-50 with the optimizer
# that MMDetection's Mask R-CNN has for ConvNeXt-T.
_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_ms-640-800-3x_coco.py',
    '../_base_/backbone_convnext-t.py',
    '../_base_/convnext_adamw.py',
]

custom_imports = dict(
    imports=['mmcakd', 'mmpretrain.models'], allow_failed_imports=False
)

_base_.backbone.update(out_indices=(1, 2, 3))

model = dict(
    backbone=_base_.pop('backbone'),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
backbone_weights = dict(new=['norm1', 'norm2'])

optim_wrapper = _base_.pop('convnext_optim_wrapper')
