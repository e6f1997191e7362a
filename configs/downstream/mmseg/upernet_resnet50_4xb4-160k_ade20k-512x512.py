_base_ = [
    'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    '../_base_/backbone_resnet50.py',
]

_base_.backbone.update(norm_cfg=dict(type='SyncBN', requires_grad=True))

# MMSegmentation's ResNet-50 is a V1c, with three 3x3 convolutions as its stem.
# A student's stem is plain: one 7x7 convolution.
model = dict(pretrained=None, backbone=_base_.pop('backbone'))
