# CAKD as its public code has it, which is not what the paper says. Its
# adversarial term is cut off from the student; here it is connected. For plain
# ViT teachers with a class token. It is trained as
# cakd_official_code_training.py says.
_base_ = './cakd_gl.py'

distiller = dict(
    student_recorders=dict(logits=dict(type='mmcakd.Logits')),
    teacher_recorders=dict(
        logits=dict(type='mmcakd.Logits'),
        qkv=dict(type='mmcakd.QKV', block=-1),
        # What the classifier reads: the class token.
        cls_token=dict(type='ModuleInputs', source='head.layers.head'),
    ),
    connectors=dict(
        glp=dict(dropout=0.0),
        pca=dict(
            type='mmcakd.PCAConnector',
            qkv='linear',
            num_heads=16,
            head_dims=64,
            replace_prob=0.0,
            attn_target='score',
            average_heads=True,
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=2),
                qkv=dict(recorder='qkv', from_student=False),
            ),
        ),
        pooled=dict(
            type='mmcakd.PooledEmbedding',
            embed_dims=768,
            inputs=dict(
                feature=dict(recorder='stages', from_student=True, data_idx=3)
            ),
        ),
    ),
    distill_losses=dict(
        loss_glp=dict(loss_weight=0.05),
        loss_cls_token=dict(type='mmcakd.MSELoss', loss_weight=1.0),
        loss_logits=dict(type='mmcakd.MSELoss', loss_weight=1.0),
        # The Gram matrix of the student's values alone is divided by the root
        # of the heads' width.
        loss_pca=dict(
            type='mmcakd.PCALoss',
            attn_weight=0.2,
            gram_weight=0.05,
            average_heads=True,
            scale_teacher_gram=False,
        ),
        loss_adv=dict(
            type='mmcakd.AdversarialLoss',
            discriminator=dict(type='mmcakd.PatchDiscriminator'),
            loss_weight=1.0,
        ),
    ),
    loss_forward_mappings=dict(
        loss_cls_token=dict(
            student=dict(connector='pooled'),
            teacher=dict(recorder='cls_token', from_student=False, data_idx=0),
        ),
        loss_logits=dict(
            student=dict(recorder='logits', from_student=True),
            teacher=dict(recorder='logits', from_student=False),
        ),
        loss_pca=dict(
            student=dict(connector='pca', connector_idx='student'),
            teacher=dict(connector='pca', connector_idx='teacher'),
        ),
        # The scores of attention, 1 x 196 x 196.
        loss_adv=dict(
            student=dict(connector='pca', connector_idx='student'),
            teacher=dict(connector='pca', connector_idx='teacher'),
        ),
    ),
)
