"""Rendered scenes in ADE20K's format, for segmentors."""

import numpy as np

from .rendered import CLASSES, Scene

PIXEL_CLASSES = ('background', *CLASSES)
"""What a pixel may be.

The background is a class of its own, so that a shape seen in the clutter
counts as a mistake: ADE20K's 0 is left out of training and evaluation alike.
"""


def index_mask(scene: Scene) -> np.ndarray:
    """The class of each pixel, numbered as in ADE20K's annotations.

    A pixel of class ``k`` of :data:`PIXEL_CLASSES` has the value ``k + 1``, as
    MMSegmentation's ``reduce_zero_label=True`` expects. Nothing has ADE20K's
    0, "unlabelled". Objects of any visible size are in it; the bar that may
    cover a part of them is background.

    Args:
        scene (Scene): A rendered scene.

    Returns:
        np.ndarray: uint8, of shape (H, W).

    Examples:
        >>> import numpy as np
        >>> from mmcakd.datasets import PIXEL_CLASSES, index_mask, render_scene
        >>> mask = index_mask(render_scene(22, split='val'))
        >>> [PIXEL_CLASSES[value - 1] for value in np.unique(mask)]
        ['background', 'checkered_cross', 'dotted_circle', 'striped_star']
    """
    mask = np.full(
        scene.image.shape[:2],
        PIXEL_CLASSES.index('background') + 1,
        dtype=np.uint8,
    )
    for obj in scene.objects:
        mask[obj.mask] = PIXEL_CLASSES.index(CLASSES[obj.label]) + 1
    return mask
