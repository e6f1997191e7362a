# 82.14 % top-1 on ImageNet-1k at 224 px.
teacher = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/convnext/convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth'  # noqa: E501
