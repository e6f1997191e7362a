_base_ = [
    '../../_base_/pairs/vit_resnet_shapes.py',
    '../../_base_/methods/cakd_gl_pca.py',
]

model = dict(distiller=_base_.distiller)
