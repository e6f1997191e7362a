"""Rendered scenes in COCO's format, for detectors.

Masks are uncompressed run-length codes: exact to the pixel, where a polygon
is not, and written and read without pycocotools. pycocotools and MMDetection
(with its default ``poly2mask=True``) read them as they are.
"""

from collections.abc import Iterable

import numpy as np

from .rendered import CLASSES, RENDERER_VERSION, Scene

MIN_VISIBLE = 1 / 256
"""Objects that show on less of the image than this are not annotated.

The smallest object in full view shows on twice as much. What is left of one
below is a sliver that does not tell its class: it counts as clutter.
"""


def encode_mask(mask: np.ndarray) -> dict:
    """Run-length code of a mask, column by column as COCO has it.

    Args:
        mask (np.ndarray): Bool, of shape (H, W).

    Returns:
        dict: ``size`` is ``[H, W]``, ``counts`` the lengths of the runs, of
        pixels off and on by turns; the first is of pixels off.

    Examples:
        >>> import numpy as np
        >>> from mmcakd.datasets import encode_mask
        >>> encode_mask(np.array([[0, 1, 1], [0, 0, 1]], dtype=bool))
        {'size': [2, 3], 'counts': [2, 1, 1, 2]}
    """
    pixels = mask.T.ravel()
    turns = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff([0, *turns, pixels.size]).tolist()
    if pixels[0]:
        counts.insert(0, 0)
    return {'size': list(mask.shape), 'counts': counts}


def decode_mask(code: dict) -> np.ndarray:
    """The mask, bool of shape (H, W), of an uncompressed run-length code."""
    height, width = code['size']
    on = np.arange(len(code['counts'])) % 2 == 1
    return np.repeat(on, code['counts']).reshape(width, height).T


def coco_annotations(scene: Scene) -> list[dict]:
    """The objects of a scene as COCO annotations, but for their ids.

    Args:
        scene (Scene): A rendered scene.

    Returns:
        list[dict]: One for each object that shows on at least
        :data:`MIN_VISIBLE` of the image. ``category_id`` counts from 1,
        ``bbox`` is ``[x, y, width, height]``, ``area`` is in pixels.

    Examples:
        >>> from mmcakd.datasets import coco_annotations, render_scene
        >>> main, *others = coco_annotations(render_scene(22, split='val'))
        >>> main['category_id'], main['bbox'], main['area']
        (23, [13, 22, 43, 42], 768)
    """
    annotations = []
    for obj in scene.objects:
        area = int(obj.mask.sum())
        if area < MIN_VISIBLE * obj.mask.size:
            continue
        x1, y1, x2, y2 = obj.box
        annotations.append(
            {
                'category_id': obj.label + 1,
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'area': area,
                'iscrowd': 0,
                'segmentation': encode_mask(obj.mask),
            }
        )
    return annotations


def coco_file_name(image_id: int) -> str:
    """File name of an image: its id in twelve digits."""
    return f'{image_id:012d}.png'


def coco_instances(
    images: Iterable[tuple[int, list[dict]]], size: int
) -> dict:
    """The content of an ``instances_*.json``.

    Args:
        images (Iterable[tuple[int, list[dict]]]): For each image its id and
            what :func:`coco_annotations` says of it.
        size (int): Height and width of the images.

    Returns:
        dict: The file as COCO has it, categories in the order of
        :data:`CLASSES`.
    """
    content = {
        # Some versions of pycocotools read results only if there is an info.
        'info': {
            'description': 'Rendered shapes',
            'version': str(RENDERER_VERSION),
        },
        'licenses': [],
        'categories': [
            {'id': label + 1, 'name': name, 'supercategory': 'shape'}
            for label, name in enumerate(CLASSES)
        ],
        'images': [],
        'annotations': [],
    }
    for image_id, annotations in images:
        content['images'].append(
            {
                'id': image_id,
                'file_name': coco_file_name(image_id),
                'height': size,
                'width': size,
            }
        )
        for annotation in annotations:
            # From 1: to COCO's evaluation, an object 0 is no object.
            number = len(content['annotations']) + 1
            content['annotations'].append(
                {'id': number, 'image_id': image_id, **annotation}
            )
    return content
