# EVA pre-training, then ImageNet-21k: 88.58 % top-1 on ImageNet-1k at 196 px.
# The checkpoint is of 196 px, a 14x14 grid. At 224 px the grid is 16x16, and
# MMPretrain interpolates the position embedding while loading.
_base_ = 'mmpretrain::_base_/models/eva/eva-l.py'

teacher = _base_.pop('model')
teacher.train_cfg = None
teacher.data_preprocessor = dict(
    mean=[0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255],
    std=[0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255],
    to_rgb=True,
)
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/eva/eva-l-p14_mim-in21k-pre_3rdparty_in1k-196px_20221213-b730c7e7.pth'  # noqa: E501
