_base_ = './deit-t.py'

student = dict(head=dict(num_classes=100))
