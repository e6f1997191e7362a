_base_ = [
    '../_base_/teachers/vit-b_cifar100.py',
    '../_base_/datasets/cifar100_bs128_rrc.py',
    '../_base_/schedules/cifar100_finetune_20e.py',
    '../_base_/default_runtime.py',
]

model = _base_.teacher
# The backbone of the checkpoint; its classifier has other classes.
model.backbone.init_cfg = dict(
    type='Pretrained',
    checkpoint='https://download.openmmlab.com/mmclassification/v0/vit/vit-base-p16_pt-32xb128-mae_in1k_20220623-4c544545.pth',  # noqa: E501
    prefix='backbone.',
)

train_dataloader = dict(batch_size=32)

_base_.default_hooks.pop('export')  # There is no student.
