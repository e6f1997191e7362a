# 7e-4 for 8 x 192 images, warmed up from 1e-6, down to zero at the last epoch.
# Weight decay 0.067 is on all parameters, norms and biases too.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=7e-4, weight_decay=0.067),
    clip_grad=dict(max_norm=1.0),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6 / 7e-4,
        by_epoch=True,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=20),
]

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=1536)
