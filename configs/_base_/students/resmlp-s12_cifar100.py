_base_ = './resmlp-s12.py'

student = dict(head=dict(num_classes=100))
