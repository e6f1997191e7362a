"""Random transforms that do the same to all inputs of a sample."""

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from torchvision.transforms import InterpolationMode

from mmcakd.arguments import ArgumentError
from mmcakd.registry import TRANSFORMS

from .names import get_input
from .pipelines import (
    image_size,
    is_photometric,
    joins_images,
    name_of,
    walk,
)


@TRANSFORMS.register_module()
class SharedTransforms(BaseTransform):
    """Do the same random crop, flip or resize to an image and its pairs.

    The image goes through the transforms with its labels, boxes and masks.
    Each other input goes through copies of the transforms as they were, with
    the random numbers that were drawn for the image; whatever they read
    beside the image is the same. Afterwards the generators are as the image
    left them: without the other inputs it would look the same. What is padded
    has the value that is set for the image.

    MMCV's ``TransformBroadcaster`` shares only what a transform has marked
    as random, and knows none of torchvision's.

    Args:
        transforms (Sequence[dict | Callable]): Transforms that move what is
            in an image. Those that change its values belong outside, where
            they change the image alone.
        names (Sequence[str]): The inputs beside the image.
        nearest (Sequence[str]): Those of them that are resampled to the
            nearest pixel, for values that must not be blended, such as holes
            in a depth map. Transforms without a setting ``interpolation`` do
            as ever. Defaults to none.

    Raises:
        ValueError: A transform changes values, as ``ColorJitter``, or joins
            images, as ``Mosaic``. An input is missing or of another size
            than the image, or a transform treats it otherwise.

    Examples:
        >>> import numpy as np
        >>> import mmcakd
        >>> from mmcakd.datasets import SharedTransforms
        >>> transform = SharedTransforms(
        ...     transforms=[dict(type='mmpretrain.RandomCrop', crop_size=8),
        ...                 dict(type='RandomFlip', prob=0.5)],
        ...     names=['depth'])
        >>> image = np.random.randint(0, 255, (16, 24, 3), np.uint8)
        >>> results = transform(dict(img=image, depth=image[..., 0]))
        >>> np.array_equal(results['img'][..., 0], results['depth'])
        True
    """

    def __init__(
        self,
        transforms: Sequence[dict | Callable],
        names: Sequence[str],
        nearest: Sequence[str] = (),
    ) -> None:
        self.transforms = Compose(transforms).transforms
        self.names = list(names)
        self.nearest = list(nearest)
        for transform in walk(self.transforms):
            if joins_images(transform):
                raise ArgumentError(
                    f'SharedTransforms: {name_of(transform)} joins several '
                    'images, whose other inputs it does not know; leave it '
                    'out'
                )
            if is_photometric(transform):
                raise ArgumentError(
                    f'SharedTransforms: {name_of(transform)} changes values, '
                    f'those of {" and ".join(self.names)}, too; put it '
                    'behind, where it changes the image alone'
                )
        unknown = [name for name in self.nearest if name not in self.names]
        if unknown:
            raise ArgumentError(
                f'SharedTransforms: nearest has {unknown[0]!r}, but names '
                f'are {", ".join(self.names)}'
            )
        if self.nearest and not any(
            hasattr(transform, 'interpolation')
            for transform in walk(self.transforms)
        ):
            raise ArgumentError(
                'SharedTransforms: nearest is set, but no transform has a '
                'setting interpolation; leave nearest out'
            )

    def transform(self, results: dict) -> dict | None:
        """Transform all inputs of a sample.

        Args:
            results (dict): Has ``img``, perhaps labels, and the inputs.

        Returns:
            dict, optional: None if a transform takes the image for unfit, so
            that the data set takes another.
        """
        self._check_all_are_named(results)
        inputs = {
            name: get_input(results, name, 'SharedTransforms')
            for name in self.names
        }
        for name, value in inputs.items():
            self._check_size(name, value, results['img'], results)
        rest = {k: v for k, v in results.items() if k not in inputs}
        beside = {k: v for k, v in rest.items() if k != 'img'}
        before = _Generators.read()
        replays = {
            name: (
                deepcopy(self.transforms),
                deepcopy(beside) | dict(img=_in_colour(value)),
            )
            for name, value in inputs.items()
        }
        shared = _run(self.transforms, rest)
        if shared is None:
            return None
        after = _Generators.read()
        for name, (transforms, sample) in replays.items():
            before.restore()
            replayed = self._replay(name, transforms, sample)
            is_grey = _is_grey(inputs[name])
            shared[name] = _first_channel(replayed) if is_grey else replayed
            self._check_replay(name, shared, after)
        after.restore()
        return shared

    def _replay(self, name: str, transforms: list, sample: dict) -> Any:
        if name in self.nearest:
            for transform in walk(transforms):
                _sample_nearest(transform)
        try:
            replayed = _run(transforms, sample)
        except Exception as error:
            raise ValueError(
                f'SharedTransforms cannot do to the {name} of '
                f'{sample.get("img_path")} what was done to the image '
                f'({type(error).__name__}: {error}); take transforms that '
                'accept both'
            ) from error
        if replayed is None:
            raise self._differs(name, sample)
        return replayed['img']

    def _check_replay(
        self, name: str, shared: dict, after: '_Generators'
    ) -> None:
        is_alike = image_size(shared[name]) == image_size(shared['img'])
        if not (is_alike and _Generators.read().equals(after)):
            raise self._differs(name, shared)

    def _differs(self, name: str, results: dict) -> ValueError:
        return ValueError(
            f'SharedTransforms treated the {name} of '
            f'{results.get("img_path")} otherwise than the image, since one '
            f'of {", ".join(map(name_of, self.transforms))} decides by what '
            'is in an image; take another'
        )

    def _check_all_are_named(self, results: dict) -> None:
        left = set(results.get('paired_inputs', ())) - set(self.names)
        if left:
            raise ValueError(
                f'SharedTransforms leaves {" and ".join(sorted(left))} '
                'behind: add to its names what LoadPairedImage loaded'
            )

    def _check_size(
        self, name: str, value: Any, image: Any, results: dict
    ) -> None:
        size, images = image_size(value), image_size(image)
        if size != images:
            raise ValueError(
                f'the {name} of {results.get("img_path")} is of {size} '
                f'pixels, but the image of {images}, so that they cannot be '
                'cropped alike; write the files in the size of the images'
            )

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(transforms={self.transforms}, '
            f'names={self.names}, nearest={self.nearest})'
        )


def _run(transforms: list, results: dict) -> dict | None:
    for transform in transforms:
        results = transform(results)
        if results is None:
            return None
    return results


def _is_grey(image: Any) -> bool:
    return isinstance(image, np.ndarray) and (
        image.ndim == 2 or image.shape[2] == 1
    )


def _in_colour(image: Any) -> Any:
    """Repeat an image of one channel, since many transforms take three."""
    if not _is_grey(image):
        return image
    return np.stack([image.reshape(image.shape[:2])] * 3, axis=-1)


def _first_channel(image: Any) -> Any:
    if isinstance(image, np.ndarray):
        return image[..., 0]
    if isinstance(image, torch.Tensor):
        return image[:1]
    return image.getchannel(0)


def _sample_nearest(transform: Any) -> None:
    """Let a transform resample to the nearest pixel, if it resamples."""
    kind = getattr(transform, 'interpolation', None)
    if isinstance(kind, InterpolationMode):
        transform.interpolation = InterpolationMode.NEAREST
    elif kind is not None:
        transform.interpolation = 'nearest'


class _Generators(NamedTuple):
    """The states of all generators that transforms draw from."""

    own: tuple
    numpys: tuple
    torchs: torch.Tensor

    @classmethod
    def read(cls) -> '_Generators':
        return cls(
            random.getstate(), np.random.get_state(), torch.get_rng_state()
        )

    def restore(self) -> None:
        random.setstate(self.own)
        np.random.set_state(self.numpys)
        torch.set_rng_state(self.torchs)

    def equals(self, other: '_Generators') -> bool:
        return (
            self.own == other.own
            and all(map(np.array_equal, self.numpys, other.numpys))
            and torch.equal(self.torchs, other.torchs)
        )
