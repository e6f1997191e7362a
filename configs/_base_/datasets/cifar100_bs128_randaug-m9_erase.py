# RandAugment of magnitude 9 of 10, random erasing of probability 0.25. timm
# leaves colour jitter out where there is RandAugment, and so does this.
_base_ = './cifar100_bs128_rrc_crop875.py'

# Unlike ImageNet's, these images are loaded as RGB.
mean, std = _base_.data_preprocessor['mean'], _base_.data_preprocessor['std']

train_pipeline = _base_.train_pipeline
train_pipeline[2:2] = [
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(
            pad_val=[round(x) for x in mean], interpolation='bicubic'
        ),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=mean,
        fill_std=std,
    ),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
