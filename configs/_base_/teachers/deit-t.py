# 74.50 % top-1 on ImageNet-1k at 224 px.
teacher = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/deit/deit-tiny_pt-4xb256_in1k_20220218-13b382a0.pth'  # noqa: E501
