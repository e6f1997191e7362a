_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_ms-640-800-3x_coco.py',
    '../_base_/backbone_resnet50.py',
]

_base_.backbone.update(frozen_stages=1, norm_eval=True)

model = dict(backbone=_base_.pop('backbone'))
