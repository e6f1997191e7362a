custom_imports = dict(
    imports=['mmcakd', 'mmpretrain.models'], allow_failed_imports=False
)
# MMSegmentation's own ResNet, whose weights are named as in MMPretrain's: it
# alone can give the first block of a dilated stage the dilation of the stage
# before, without which the student's filters meet a grid they were not
# trained on. Its V1c has three 3x3 convolutions as its stem; a student's stem
# is plain: one 7x7 convolution.
backbone = dict(
    type='ResNet',
    init_cfg=dict(
        type='Pretrained', checkpoint='student.pth', prefix='backbone.'
    ),
)
backbone_weights = dict(new=[], unused=[])
