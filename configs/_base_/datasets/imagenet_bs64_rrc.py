# Random crops and flips.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py'

train_dataloader = dict(batch_size=64)
