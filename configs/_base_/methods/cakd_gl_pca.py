# CAKD without its multi-view training: beside the tokens, the student's map
# learns what the attention of the teacher's last block makes of them.
_base_ = './cakd_gl.py'

distiller = dict(
    teacher_recorders=dict(qkv=dict(type='mmcakd.QKV', block=-1)),
    connectors=dict(
        pca=dict(
            type='mmcakd.PCAConnector',
            replace_prob=0.5,
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=2),
                qkv=dict(recorder='qkv', from_student=False),
            ),
        )
    ),
    distill_losses=dict(
        # The paper's two squared distances, as means over all elements.
        loss_pca=dict(
            type='mmcakd.PCALoss',
            attn_weight=1.0,
            gram_weight=1.0,
            loss_weight=1.0,
        )
    ),
    loss_forward_mappings=dict(
        loss_pca=dict(
            student=dict(connector='pca', connector_idx='student'),
            teacher=dict(connector='pca', connector_idx='teacher'),
        )
    ),
)
