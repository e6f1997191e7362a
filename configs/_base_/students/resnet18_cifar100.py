_base_ = './resnet18_smooth.py'

student = dict(head=dict(num_classes=100))
