_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3].update(magnitude_level=7, total_level=8)  # RandAugment

train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
