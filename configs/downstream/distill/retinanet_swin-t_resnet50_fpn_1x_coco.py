# The five levels of an FPN learn from those of a RetinaNet with Swin-T, by
# channel-wise divergence with the temperature and weight of MMRazor's recipe
# for RetinaNet (cwd_fpn_retina_r101_retina_r50_1x_coco).
#
# MMDetection publishes no weights of this teacher. Train it first, by its own
# config, or take any checkpoint of it:
#     --cfg-options model.teacher_ckpt=PATH
# A student that was itself distilled may be the backbone:
#     --cfg-options model.architecture.backbone.init_cfg.checkpoint=student.pth
#         model.architecture.backbone.init_cfg.prefix=backbone.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['mmcakd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmcakd.CrossArchDistill',
    architecture=_base_.model,
    teacher='mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
    teacher_ckpt='retinanet_swin-t-p4-w7_fpn_1x_coco.pth',
    distiller=dict(
        student_recorders=dict(fpn=dict(type='ModuleOutputs', source='neck')),
        teacher_recorders=dict(fpn=dict(type='ModuleOutputs', source='neck')),
        distill_losses={
            f'loss_fpn{level}': dict(
                type='ChannelWiseDivergence', tau=1, loss_weight=10
            )
            for level in range(5)
        },
        loss_forward_mappings={
            f'loss_fpn{level}': dict(
                preds_S=dict(
                    recorder='fpn', from_student=True, data_idx=level
                ),
                preds_T=dict(
                    recorder='fpn', from_student=False, data_idx=level
                ),
            )
            for level in range(5)
        },
    ),
)

default_hooks = dict(export=dict(type='mmcakd.ExportStudentHook'))
