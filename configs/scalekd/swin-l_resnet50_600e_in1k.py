_base_ = './swin-l_resnet50_in1k.py'

train_cfg = dict(max_epochs=600)
