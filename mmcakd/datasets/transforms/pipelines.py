"""What a data pipeline consists of."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform

#: Names of transforms that move what is in an image.
_GEOMETRIC = re.compile(
    'Crop|Flip|Resiz|Rotat|Shear|Translat|Affine|Perspective|Elastic|Geom|'
    'Expand|Shift|Pad|AutoAug|RandAug|AugMix|TrivialAug'
)
#: Names of those that change its values, wherever they are.
_PHOTOMETRIC = re.compile(
    'Colou?r|PhotoMetric|Normaliz|Solariz|Posteriz|Equaliz|Contrast|Bright|'
    'Sharp|Invert|HSV|Lighting|Blur|Gray|Corrupt|AutoAug|RandAug|AugMix|'
    'TrivialAug'
)


def walk(transforms: Iterable[Any]) -> Iterator[Any]:
    """Find transforms, and those in transforms that are made of others.

    Args:
        transforms (Iterable): Of OpenMMLab, and of torchvision as MMPretrain
            wraps them.

    Yields:
        Callable: A transform, before those in it.

    Examples:
        >>> import mmcakd
        >>> from mmcv.transforms import RandomApply
        >>> from mmcakd.datasets.transforms.pipelines import walk
        >>> flip = dict(type='RandomFlip', prob=0.5)
        >>> found = walk([RandomApply(transforms=[flip])])
        >>> [type(transform).__name__ for transform in found]
        ['RandomApply', 'Compose', 'RandomFlip']
    """
    for transform in transforms:
        if isinstance(transform, (list, tuple)):
            yield from walk(transform)
        elif _is_transform(transform):
            yield transform
            # Those of torchvision may be modules, whose parts are in a dict.
            values = {**vars(transform)}
            yield from walk([*values.pop('_modules', {}).values()])
            yield from walk(values.values())


def _is_transform(value: Any) -> bool:
    kind = type(value)
    return (
        isinstance(value, BaseTransform)
        or kind.__name__ in ('Compose', 'TorchVisonTransformWrapper')
        or (
            kind.__module__.startswith('torchvision.transforms')
            and callable(value)
            and hasattr(value, '__dict__')
            and not isinstance(value, type)
        )
    )


def name_of(transform: Any) -> str:
    """Name of a transform, or of the one of torchvision in it."""
    return type(getattr(transform, 't', transform)).__name__


def is_geometric(transform: Any) -> bool:
    """Whether a transform moves what is in an image, by its name."""
    return bool(_GEOMETRIC.search(name_of(transform)))


def is_photometric(transform: Any) -> bool:
    """Whether a transform changes the values of an image, by its name."""
    return bool(_PHOTOMETRIC.search(name_of(transform)))


def joins_images(transform: Any) -> bool:
    """Whether a transform asks for further images, as Mosaic and MixUp do."""
    return hasattr(transform, 'get_indexes') or hasattr(
        transform, 'get_indices'
    )


def image_size(image: Any) -> tuple[int, int]:
    """Height and width of an image in whatever form a pipeline has it."""
    if isinstance(image, np.ndarray):
        return tuple(image.shape[:2])
    if isinstance(image, torch.Tensor):
        return tuple(image.shape[-2:])
    width, height = image.size
    return height, width
