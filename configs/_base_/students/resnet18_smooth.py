_base_ = './resnet18.py'

student = dict(
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1))
)
