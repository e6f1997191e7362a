_base_ = [
    'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
    '../_base_/backbone_swin-t.py',
]

_base_.backbone.update(drop_path_rate=0.2, out_indices=(1, 2, 3))

model = dict(backbone=_base_.pop('backbone'))
backbone_weights = dict(new=['norm1', 'norm2'])
