# The logits of an FCN learn from those of a UPerNet with Swin-T, by
# channel-wise divergence with the temperature and weight of MMRazor's recipe
# for logits (cwd_logits_pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes).
#
# The teacher's weights are published by MMSegmentation; it publishes none of
# an FCN with Swin-T.
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

custom_imports = dict(imports=['mmcakd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmcakd.CrossArchDistill',
    architecture=_base_.model,
    teacher=(
        'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_'
        'ade20k-512x512.py'
    ),
    teacher_ckpt=(
        'https://download.openmmlab.com/mmsegmentation/v0.5/swin/'
        'upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_'
        'pretrain_224x224_1K/upernet_swin_tiny_patch4_window7_512x512_160k_'
        'ade20k_pretrain_224x224_1K_20210531_112542-e380ad3e.pth'
    ),
    distiller=dict(
        student_recorders=dict(
            logits=dict(type='ModuleOutputs', source='decode_head.conv_seg')
        ),
        teacher_recorders=dict(
            logits=dict(type='ModuleOutputs', source='decode_head.conv_seg')
        ),
        # The FCN's logits have stride 8, the UPerNet's 4.
        connectors=dict(
            upsample=dict(
                type='TorchFunctionalConnector',
                function_name='interpolate',
                func_args=dict(scale_factor=2, mode='bilinear'),
            )
        ),
        distill_losses=dict(
            loss_logits=dict(
                type='ChannelWiseDivergence', tau=1, loss_weight=5
            )
        ),
        loss_forward_mappings=dict(
            loss_logits=dict(
                preds_S=dict(
                    recorder='logits', from_student=True, connector='upsample'
                ),
                preds_T=dict(recorder='logits', from_student=False),
            )
        ),
    ),
)

default_hooks = dict(export=dict(type='mmcakd.ExportStudentHook'))
