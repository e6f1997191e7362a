# Trained from scratch as in MAE's comparison: 82.37 % top-1 on ImageNet-1k at
# 224 px.
teacher = 'mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/vit/vit-base-p16_pt-32xb128-mae_in1k_20220623-4c544545.pth'  # noqa: E501
