_base_ = './deit-t.py'

student = dict(backbone=dict(arch='deit-small'), head=dict(in_channels=384))
