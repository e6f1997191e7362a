# The combination is ours: the head of MMSegmentation's FCN in the recipe of
# UPerNet with Swin-T.
_base_ = [
    './upernet_swin-t_8xb2-160k_ade20k-512x512.py',
    '../_base_/fcn_head.py',
]

_base_.fcn_head.update(in_channels=768, in_index=1)

model = dict(
    # No stage that no head reads: its norm would have no gradient.
    backbone=dict(out_indices=(2, 3)),
    decode_head=_base_.pop('fcn_head'),
    auxiliary_head=dict(in_index=0),
)
backbone_weights = dict(new=['norm2'])
