custom_imports = dict(
    imports=['mmcakd', 'mmpretrain.models'], allow_failed_imports=False
)
backbone = dict(
    _delete_=True,
    type='mmpretrain.ResNet',
    depth=50,
    out_indices=(0, 1, 2, 3),
    init_cfg=dict(
        type='Pretrained', checkpoint='student.pth', prefix='backbone.'
    ),
)
backbone_weights = dict(new=[], unused=[])
