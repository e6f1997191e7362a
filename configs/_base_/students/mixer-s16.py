_base_ = './mixer-b16.py'

student = dict(
    backbone=dict(arch='s', drop_path_rate=0.0),
    head=dict(in_channels=512),
)
