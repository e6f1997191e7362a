# Swin-Pico of OFA-KD.
_base_ = './swin-n.py'

student = dict(
    backbone=dict(arch=dict(embed_dims=48), drop_path_rate=0.1),
    head=dict(num_classes=100, in_channels=384),
)
