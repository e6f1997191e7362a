_base_ = 'mmpretrain::_base_/schedules/imagenet_bs2048_rsb.py'

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.25,
        by_epoch=True,
        end=5,
        convert_to_iter_based=True,
    ),
    # Down to zero at the last epoch, however many there are.
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5),
]

train_cfg = dict(max_epochs=300)
