# BatchNorm is synchronised in the student alone; `sync_bn` of a Runner would
# convert the projectors, too.
_base_ = './resnet50.py'

student = dict(backbone=dict(norm_cfg=dict(type='SyncBN', requires_grad=True)))
