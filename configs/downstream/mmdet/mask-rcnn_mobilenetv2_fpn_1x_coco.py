# The combination is ours: the recipe is that of ResNet-50.
_base_ = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/backbone_mobilenetv2.py',
]

model = dict(
    backbone=_base_.pop('backbone'),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
