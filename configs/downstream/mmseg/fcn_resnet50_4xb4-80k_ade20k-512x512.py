_base_ = [
    'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
    '../_base_/backbone_resnet50_dilated.py',
]

model = dict(pretrained=None, backbone=_base_.pop('backbone'))
