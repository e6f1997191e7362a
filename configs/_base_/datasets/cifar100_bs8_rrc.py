_base_ = './cifar100_bs128_rrc.py'

train_dataloader = dict(batch_size=8)
