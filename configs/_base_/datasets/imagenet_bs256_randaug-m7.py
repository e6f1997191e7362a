_base_ = './imagenet_bs256_randaug-m7_erase.py'

train_pipeline = _base_.train_pipeline
train_pipeline.pop(4)  # RandomErasing

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
