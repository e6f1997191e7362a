_base_ = './vit-b16.py'

student = dict(backbone=dict(patch_size=14))
