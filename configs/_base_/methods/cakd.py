# CAKD by the equations of its paper: both projectors, and a discriminator that
# tells the projected tokens from the teacher's. It is trained as
# cakd_training.py says.
_base_ = './cakd_gl_pca.py'

distiller = dict(
    distill_losses=dict(
        loss_adv=dict(
            type='mmcakd.AdversarialLoss',
            discriminator=dict(type='mmcakd.TokenDiscriminator'),
            # Ours: the paper writes the saturating form, whose gradient
            # vanishes where the discriminator wins, and gives no weight.
            saturating=False,
            loss_weight=1.0,
        )
    ),
    loss_forward_mappings=dict(
        loss_adv=dict(
            student=dict(connector='glp'),
            teacher=dict(recorder='stages', from_student=False, data_idx=-1),
        )
    ),
)
