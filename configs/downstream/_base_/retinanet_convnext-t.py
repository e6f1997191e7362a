# The combination is ours: a recipe for ResNet-50 with the optimizer that
# MMDetection's Mask R-CNN has for ConvNeXt-T.
_base_ = ['./backbone_convnext-t.py', './convnext_adamw.py']

custom_imports = dict(
    imports=['mmcakd', 'mmpretrain.models'], allow_failed_imports=False
)

_base_.backbone.update(out_indices=(1, 2, 3))

retinanet = dict(
    backbone=_base_.pop('backbone'),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
backbone_weights = dict(new=['norm1', 'norm2'])
