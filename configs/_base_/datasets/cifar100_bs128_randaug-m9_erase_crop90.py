# For models that timm evaluates on the central 0.9 of an image.
_base_ = './cifar100_bs128_randaug-m9_erase.py'

test_pipeline = _base_.test_pipeline
test_pipeline[0].scale = 248

val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
