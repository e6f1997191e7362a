custom_imports = dict(
    imports=['mmcakd', 'mmpretrain.models'], allow_failed_imports=False
)
backbone = dict(
    _delete_=True,
    type='mmpretrain.SwinTransformer',
    arch='tiny',
    out_indices=(0, 1, 2, 3),
    # A map smaller than a window is padded, where a classifier refuses it.
    pad_small_map=True,
    init_cfg=dict(
        type='Pretrained', checkpoint='student.pth', prefix='backbone.'
    ),
)
# A classifier reads, and normalises, its last stage alone.
backbone_weights = dict(new=['norm0', 'norm1', 'norm2'], unused=[])
