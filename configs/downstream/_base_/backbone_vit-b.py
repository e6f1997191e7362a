custom_imports = dict(
    imports=['mmcakd', 'mmpretrain.models'], allow_failed_imports=False
)
backbone = dict(
    _delete_=True,
    type='mmpretrain.VisionTransformer',
    arch='deit-base',
    # The position embeddings are resized to this size when they are loaded.
    img_size=512,
    patch_size=16,
    # As the student of `configs/_base_/students/vit-b16.py`.
    with_cls_token=False,
    out_type='featmap',
    out_indices=(2, 5, 8, 11),
    final_norm=False,
    init_cfg=dict(
        type='Pretrained', checkpoint='student.pth', prefix='backbone.'
    ),
)
backbone_weights = dict(new=[], unused=['ln1'])

# MMSegmentation keeps all that has "norm" in its name from decay; the norms
# of MMPretrain's ViT are named otherwise.
vit_custom_keys = {'.ln': dict(decay_mult=0.0)}
