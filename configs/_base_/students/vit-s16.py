_base_ = './vit-b16.py'

student = dict(backbone=dict(arch='deit-small'), head=dict(in_channels=384))
