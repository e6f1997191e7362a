_base_ = './resnet50.py'

student = dict(head=dict(num_classes=100))
