# 83.21 % top-1 on ImageNet-1k at 224 px.
teacher = 'mmpretrain::swin_transformer/swin-small_16xb64_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/swin_small_patch4_window7_224-cc7a01c9.pth'  # noqa: E501
