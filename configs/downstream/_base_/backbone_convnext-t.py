# Without custom_imports: MMDetection's recipe for ConvNeXt has some, and two
# bases must not set one key.
backbone = dict(
    _delete_=True,
    type='mmpretrain.ConvNeXt',
    arch='tiny',
    out_indices=(0, 1, 2, 3),
    drop_path_rate=0.4,
    layer_scale_init_value=1.0,
    gap_before_final_norm=False,
    init_cfg=dict(
        type='Pretrained', checkpoint='student.pth', prefix='backbone.'
    ),
)
# A classifier reads, and normalises, its last stage alone.
backbone_weights = dict(new=['norm0', 'norm1', 'norm2'], unused=[])
