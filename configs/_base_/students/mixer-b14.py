_base_ = './mixer-b16.py'

student = dict(backbone=dict(patch_size=14))
