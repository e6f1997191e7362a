# DeiT-B without distillation token: 81.79 % top-1 on ImageNet-1k at 224 px.
teacher = 'mmpretrain::deit/deit-base_16xb64_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/deit/deit-base_3rdparty_pt-16xb64_in1k_20211124-6f40c188.pth'  # noqa: E501
