# The recipe "ResNet strikes back" A1: 80.12 % top-1 on ImageNet-1k at 224 px.
teacher = 'mmpretrain::resnet/resnet50_8xb256-rsb-a1-600e_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb256-rsb-a1-600e_in1k_20211228-20e21305.pth'  # noqa: E501
