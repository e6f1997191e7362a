_base_ = './mobilenetv2.py'

student = dict(head=dict(num_classes=100))
