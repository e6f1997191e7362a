_base_ = [
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    '../_base_/backbone_swin-t.py',
]

_base_.backbone.update(drop_path_rate=0.3)

model = dict(backbone=_base_.pop('backbone'))
