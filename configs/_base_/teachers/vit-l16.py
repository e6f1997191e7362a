# DeiT III-L without ImageNet-21k: 84.87 % top-1 on ImageNet-1k at 224 px.
teacher = 'mmpretrain::deit3/deit3-large-p16_64xb64_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/deit3/deit3-large-p16_3rdparty_in1k_20221009-03b427ea.pth'  # noqa: E501
