_base_ = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/backbone_resnet50.py',
]

_base_.backbone.update(frozen_stages=1, norm_eval=True)

model = dict(backbone=_base_.pop('backbone'))
