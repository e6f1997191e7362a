# The combination is ours: MMDetection's RetinaNet with Swin-T, which it trains
# for 12 epochs, in its recipe of 36 epochs for ResNet-50. Both have the same
# optimizer.
_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_ms-640-800-3x_coco.py',
    '../_base_/backbone_swin-t.py',
]

_base_.backbone.update(drop_path_rate=0.2, out_indices=(1, 2, 3))

model = dict(
    backbone=_base_.pop('backbone'),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
backbone_weights = dict(new=['norm1', 'norm2'])
