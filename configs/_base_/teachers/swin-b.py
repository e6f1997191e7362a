# Pre-trained on ImageNet-21k: 85.16 % top-1 on ImageNet-1k at 224 px.
teacher = 'mmpretrain::swin_transformer/swin-base_16xb64_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/swin_base_patch4_window7_224_22kto1k-f967f799.pth'  # noqa: E501
