# Pre-trained on ImageNet-21k: 76.68 % top-1 on ImageNet-1k at 224 px. It has
# a normalisation of its own, to which the student's images are converted.
teacher = 'mmpretrain::mlp_mixer/mlp-mixer-base-p16_64xb64_in1k.py'
teacher_ckpt = 'https://download.openmmlab.com/mmclassification/v0/mlp-mixer/mixer-base-p16_3rdparty_64xb64_in1k_20211124-1377e3e0.pth'  # noqa: E501
