# Pre-trained on ImageNet-21k: 86.24 % top-1 on ImageNet-1k at 224 px.
teacher = 'mmpretrain::swin_transformer/swin-large_16xb64_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/swin_large_patch4_window7_224_22kto1k-5f0996db.pth'  # noqa: E501
