_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_ms-640-800-3x_coco.py',
    '../_base_/retinanet_convnext-t.py',
]

model = _base_.pop('retinanet')
optim_wrapper = _base_.pop('convnext_optim_wrapper')
