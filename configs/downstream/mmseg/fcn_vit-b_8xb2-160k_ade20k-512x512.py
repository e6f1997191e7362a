# The combination is ours: the head of MMSegmentation's FCN in the recipe of
# UPerNet with ViT-B. It reads the tokens as they are, at stride 16.
_base_ = [
    './upernet_vit-b_8xb2-160k_ade20k-512x512.py',
    '../_base_/fcn_head.py',
]

_base_.fcn_head.update(in_channels=768, in_index=3)

model = dict(
    neck=None,
    decode_head=_base_.pop('fcn_head'),
    auxiliary_head=dict(in_index=2),
)
