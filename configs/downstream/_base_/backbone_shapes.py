_base_ = '../../quickstart/_base_/student.py'
custom_imports = dict(
    imports=['mmcakd', 'mmpretrain.models'], allow_failed_imports=False
)

# The quick start's student: maps at strides 2, 4, 8 and 16.
backbone = _base_.pop('student').backbone
backbone.update(
    _delete_=True,
    type='mmpretrain.ResNet_CIFAR',
    out_indices=(0, 1, 2, 3),
    init_cfg=dict(
        type='Pretrained', checkpoint='student.pth', prefix='backbone.'
    ),
)
backbone_weights = dict(new=[], unused=[])
