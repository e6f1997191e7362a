# The decode head of MMSegmentation's FCN; what it reads is left to fill in.
fcn_head = dict(
    _delete_=True,
    type='FCNHead',
    channels=512,
    num_convs=2,
    concat_input=True,
    dropout_ratio=0.1,
    num_classes=150,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    align_corners=False,
    loss_decode=dict(
        type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
    ),
)
