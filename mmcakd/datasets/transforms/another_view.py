"""Another view of an image, from a pipeline of its own."""

from collections.abc import Callable, Sequence
from copy import deepcopy

from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose

from mmcakd.registry import TRANSFORMS

from .names import add_input, check_name


@TRANSFORMS.register_module()
class AnotherView(BaseTransform):
    """Make another view of an image, such as a crop of its own.

    A copy of the sample goes through the transforms, and its image is kept
    under the name of the view, which no transform that follows changes. What
    came before is in both. Labels stay those of the image.

    Args:
        name (str): What the input is called, such as ``'view1'``.
        transforms (Sequence[dict | Callable]): What is done to the copy.

    Examples:
        >>> import numpy as np
        >>> import mmcakd
        >>> from mmcakd.datasets import AnotherView
        >>> transform = AnotherView(
        ...     name='large', transforms=[dict(type='Resize', scale=(64, 48))])
        >>> results = transform(dict(img=np.zeros((24, 32, 3), np.uint8)))
        >>> results['img'].shape, results['large'].shape
        ((24, 32, 3), (48, 64, 3))
    """

    def __init__(
        self, name: str, transforms: Sequence[dict | Callable]
    ) -> None:
        check_name('AnotherView', name)
        self.name = name
        self.transforms = Compose(transforms).transforms

    def transform(self, results: dict) -> dict | None:
        """Make the view.

        Args:
            results (dict): Has ``img``.

        Returns:
            dict, optional: Has the view under its name, too. None if a
            transform finds no view of this image, so that the data set takes
            another.
        """
        view = deepcopy(results)
        for transform in self.transforms:
            view = transform(view)
            if view is None:
                return None
        add_input(results, self.name, view['img'])
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(name={self.name!r}, '
            f'transforms={self.transforms})'
        )
