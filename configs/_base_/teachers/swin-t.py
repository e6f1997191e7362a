# 81.18 % top-1 on ImageNet-1k at 224 px.
teacher = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/swin_tiny_patch4_window7_224-160bb0a5.pth'  # noqa: E501
