"""Samples of several views or modalities, as a batch is made of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmpretrain.datasets import PackInputs

from mmcakd.registry import TRANSFORMS

from .names import get_input
from .pipelines import image_size


@TRANSFORMS.register_module()
class PackNamedInputs(BaseTransform):
    """Pack an image with its labels, and other inputs beside it.

    The last step of a pipeline. What it makes is prepared by
    :class:`mmcakd.models.data_preprocessors.NamedInputsPreprocessor`.

    Args:
        names (Sequence[str]): Inputs beside the image.
        packer (dict): Config of what packs the image and the labels, such as
            ``dict(type='mmdet.PackDetInputs')``. Defaults to
            ``dict(type='mmpretrain.PackInputs')``.

    Raises:
        ValueError: The sample has no such input; or one that was loaded as
            the image's pair has another size by now.

    Examples:
        >>> import numpy as np
        >>> import mmcakd
        >>> from mmcakd.datasets import PackNamedInputs
        >>> packed = PackNamedInputs(names=['depth'])(dict(
        ...     img=np.zeros((24, 32, 3), np.uint8), gt_label=3,
        ...     depth=np.full((24, 32), 40000, np.uint16)))
        >>> {name: tuple(x.shape) for name, x in packed['inputs'].items()}
        {'image': (3, 24, 32), 'depth': (1, 24, 32)}
        >>> packed['inputs']['depth'].max()
        tensor(40000, dtype=torch.int32)
        >>> packed['data_samples'].gt_label
        tensor([3])
    """

    def __init__(
        self, names: Sequence[str], packer: dict | None = None
    ) -> None:
        self.names = list(names)
        self.packer = TRANSFORMS.build(
            packer or dict(type='mmpretrain.PackInputs')
        )

    def transform(self, results: dict) -> dict:
        """Pack a sample.

        Args:
            results (dict): Has ``img``, labels and the inputs.

        Returns:
            dict: ``inputs``, a dict with ``'image'`` and the others, each a
            tensor ``(C, H, W)``, and ``data_samples``.
        """
        size = image_size(results['img'])
        others = {}
        for name in self.names:
            value = get_input(results, name, 'PackNamedInputs')
            is_paired = name in results.get('paired_inputs', ())
            if is_paired and image_size(value) != size:
                raise ValueError(
                    f'the {name} of {results.get("img_path")} is of '
                    f'{image_size(value)} pixels, but the image of {size}: '
                    'put transforms that crop, resize or turn both into '
                    'SharedTransforms'
                )
            others[name] = _to_tensor(value)
        packed = self.packer(results)
        return {**packed, 'inputs': {'image': packed['inputs'], **others}}

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(names={self.names}, packer={self.packer})'
        )


def _to_tensor(value: Any) -> torch.Tensor:
    # Few operations of torch take unsigned numbers of 16 bits.
    if isinstance(value, np.ndarray) and value.dtype == np.uint16:
        value = value.astype(np.int32)
    return PackInputs.format_input(value)
