_base_ = './cakd_training.py'

# A hundredth of the student's learning rate.
discriminator_optim = dict(
    _delete_=True, optimizer=dict(type='SGD', lr=1e-3, momentum=0.9)
)

# The factor on all terms but the label loss is
# min(max(epoch - 25, 0) / 50, 0.2).
ramp = dict(
    type='mmcakd.LossWeightScheduleHook', points=[(25, 0.0), (35, 0.2)]
)
