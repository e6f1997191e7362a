# How a method with a discriminator is trained: views for the student, and an
# optimizer for the discriminator.
multi_view = dict(
    type='mmcakd.AdversarialDistill',
    # Colour jitter and masks, in half of the images. The paper crops and
    # rotates, too, which moves what the student sees away from the tokens that
    # it is compared with: crop_scale=(0.5, 1.0), max_rotation=15. All ranges
    # are ours.
    view_generator=dict(type='mmcakd.MultiViewGenerator', prob=0.5),
    discriminator_interval=5,
)

# Ours.
discriminator_optim = dict(
    optimizer=dict(type='Adam', lr=1e-4, betas=(0.5, 0.999))
)
