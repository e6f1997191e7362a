_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py',
    '../_base_/backbone_swin-t.py',
]

_base_.backbone.update(drop_path_rate=0.2)

model = dict(backbone=_base_.pop('backbone'))
