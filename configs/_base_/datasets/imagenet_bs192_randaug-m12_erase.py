# RandAugment of magnitude 12 of 15, random erasing of probability 0.25.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3].update(magnitude_level=12, total_level=15)  # RandAugment

train_dataloader = dict(batch_size=192, dataset=dict(pipeline=train_pipeline))
