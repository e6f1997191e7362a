_base_ = [
    'mmseg::vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py',
    '../_base_/backbone_vit-b.py',
]

model = dict(pretrained=None, backbone=_base_.pop('backbone'))

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=_base_.pop('vit_custom_keys'))
)
