_base_ = [
    '../_base_/teachers/vit-l_cifar100.py',
    '../_base_/datasets/cifar100_bs128_rrc.py',
    '../_base_/schedules/cifar100_finetune_20e.py',
    '../_base_/default_runtime.py',
]

model = _base_.teacher
# The backbone of the checkpoint; its classifier has other classes.
model.backbone.init_cfg = dict(
    type='Pretrained',
    checkpoint='https://download.openmmlab.com/mmclassification/v0/deit3/deit3-large-p16_3rdparty_in1k_20221009-03b427ea.pth',  # noqa: E501
    prefix='backbone.',
)

train_dataloader = dict(batch_size=32)

_base_.default_hooks.pop('export')  # There is no student.
