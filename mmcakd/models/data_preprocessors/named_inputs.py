"""Preprocessor for samples of several views or modalities."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from torch import nn

from mmcakd.arguments import ArgumentError, raise_unknown, show
from mmcakd.registry import MODELS

from ..teachers.teacher import pad_value


@MODELS.register_module()
class NamedInputsPreprocessor(BaseDataPreprocessor):
    """A data preprocessor with one of OpenMMLab's for each named input.

    The inputs of a batch are a dict: ``'image'``, which the student sees, and
    further views or modalities of the same samples, for teachers. Each has
    its own mean, std and order of channels. The labels go with the image.

    A batch whose inputs are no dict, as in validation, is prepared as if this
    were the image's preprocessor, and the student is exported with that one
    alone. Whoever reads or sets anything else here, such as ``mean``,
    ``pad_value`` or ``batch_augments``, means the image's, too.

    An input of the same sizes as the images, such as a depth map, is padded
    to the size of their batch, with its own ``pad_value``.

    Args:
        image (dict): Config of the image's preprocessor, of type
            ``mmpretrain.ClsDataPreprocessor`` if it says none.
        batch_augments (dict, optional): MMPretrain's classifiers give their
            ``train_cfg`` here. Only None is accepted, see below. Defaults to
            None.
        **others (dict): Configs of the further inputs' preprocessors, by
            name; likewise.

    Raises:
        ValueError: A preprocessor has ``batch_augments``, which mix or resize
            one input of a batch alone, so that the others would not belong to
            it. Or an input of a batch is missing, or unknown.

    Examples:
        >>> import torch
        >>> from mmcakd.models.data_preprocessors import (
        ...     NamedInputsPreprocessor)
        >>> preprocessor = NamedInputsPreprocessor(
        ...     image=dict(mean=[100, 110, 120], std=[50, 60, 70],
        ...                to_rgb=True),
        ...     depth=dict(mean=[2000], std=[500]))
        >>> batch = preprocessor(dict(inputs=dict(
        ...     image=torch.full((2, 3, 8, 8), 110, dtype=torch.uint8),
        ...     depth=torch.full((2, 1, 8, 8), 2500.0))))
        >>> {name: tuple(x.shape) for name, x in batch['inputs'].items()}
        {'image': (2, 3, 8, 8), 'depth': (2, 1, 8, 8)}
        >>> batch['inputs']['depth'].unique()
        tensor([1.])
        >>> preprocessor.mean.flatten()  # the image's
        tensor([100, 110, 120])
        >>> preprocessor.of('depth').mean.flatten()
        tensor([2000])
    """

    def __init__(
        self,
        image: dict,
        batch_augments: dict | None = None,
        **others: dict,
    ) -> None:
        super().__init__()
        for name, cfg in others.items():
            if not isinstance(cfg, dict):
                raise ArgumentError(
                    f'NamedInputsPreprocessor has no argument {name!r} that '
                    f'is {show(cfg)}; settings of the preprocessor of an '
                    f'input belong into its dict, as in image=dict({name}=...)'
                )
        default = dict(type='mmpretrain.ClsDataPreprocessor')
        self.inputs = nn.ModuleDict(
            {
                name: MODELS.build({**default, **cfg})
                for name, cfg in dict(image=image, **others).items()
            }
        )
        self.check_mixing(batch_augments)
        for preprocessor in self.inputs.values():
            self.check_mixing(getattr(preprocessor, 'batch_augments', None))

    def of(self, name: str) -> nn.Module:
        """Get the preprocessor of an input.

        Args:
            name (str): Such as ``'image'``.

        Raises:
            ValueError: There is no such input.
        """
        if name not in self.inputs:
            raise_unknown(
                'data_preprocessor prepares no input', name, list(self.inputs)
            )
        return self.inputs[name]

    def check_mixing(self, batch_augments: Any) -> None:
        """Check that nothing is done to one input of a batch alone.

        Args:
            batch_augments (Any): What mixes or resizes them, if anything.

        Raises:
            ValueError: There is something.
        """
        if batch_augments:
            raise ValueError(
                'batch_augments (MixUp, CutMix, resizing) change one input '
                'alone, so that the inputs of a sample would no longer belong '
                "together: remove them from data_preprocessor, the student's "
                'train_cfg and SwitchRecipeHook'
            )

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data (dict): ``inputs`` are a dict that has, for each name, a list
                of tensors ``(C, H, W)`` or a tensor ``(N, C, H, W)``; or they
                are those of the image alone. ``data_samples`` are optional.
            training (bool): Defaults to False.

        Returns:
            dict: ``inputs``, a tensor ``(N, C, H, W)`` for each name, and
            ``data_samples``.
        """
        image = self.of('image')
        inputs = data['inputs']
        if not isinstance(inputs, Mapping):
            return image(data, training)
        self._check_names(inputs)
        if training:
            # A hook may have switched them on since.
            self.check_mixing(getattr(image, 'batch_augments', None))
        sizes = _sizes(inputs['image'])
        batch = image({**data, 'inputs': inputs['image']}, training)
        prepared = {'image': batch['inputs']}
        for name in self.inputs:
            if name != 'image':
                is_paired = _sizes(inputs[name]) == sizes
                least = batch['inputs'].shape[-2:] if is_paired else (0, 0)
                prepared[name] = self._prepare(name, inputs[name], least)
        return {**batch, 'inputs': prepared}

    def _check_names(self, given: Iterable[str]) -> None:
        known, given = list(self.inputs), list(given)
        wrong = [
            f'{what} {", ".join(names)}'
            for what, names in (
                ('without', [name for name in known if name not in given]),
                ('with', [name for name in given if name not in known]),
            )
            if names
        ]
        if wrong:
            raise ValueError(
                f'a batch came {" and ".join(wrong)}, but data_preprocessor '
                f'prepares {", ".join(known)}: name the same inputs in '
                'data_preprocessor and in PackNamedInputs of the pipeline'
            )

    def _prepare(
        self,
        name: str,
        images: torch.Tensor | Sequence[torch.Tensor],
        least: Sequence[int],
    ) -> torch.Tensor:
        """Prepare one input, at least of a size, without any labels."""
        prepare = self.of(name)

        def run(batch: Any) -> torch.Tensor:
            # MMPretrain's preprocessor for SimCLR and others asks for both.
            return prepare(dict(inputs=batch, data_samples=None))['inputs']

        # MMSegmentation's takes images of several sizes only with labels.
        parts = (
            [run(images)]
            if isinstance(images, torch.Tensor)
            else [run([image]) for image in images]
        )
        height, width = (
            max(least[axis], *(part.shape[axis - 2] for part in parts))
            for axis in (0, 1)
        )
        return torch.cat(
            [
                F.pad(
                    part,
                    (0, width - part.shape[-1], 0, height - part.shape[-2]),
                    value=pad_value(prepare),
                )
                for part in parts
            ]
        )

    def cast_data(self, data: Any) -> Any:
        """Copy data to the device, as the image's preprocessor does."""
        return self.of('image').cast_data(data)

    @property
    def _device(self) -> torch.device:
        return self.of('image').device

    @_device.setter
    def _device(self, device: torch.device) -> None:
        # MMEngine's sets it before there are any.
        for preprocessor in self._modules.get('inputs', {}).values():
            preprocessor._device = device

    def _find_image(self) -> nn.Module | None:
        """The image's, once it is there: a copy is empty at first."""
        modules = vars(self).get('_modules', {})
        return modules['inputs']['image'] if 'inputs' in modules else None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            image = self._find_image()
            if image is None:
                raise
            return getattr(image, name)

    def __setattr__(self, name: str, value: Any) -> None:
        image = self._find_image()
        is_own = name in vars(self) or hasattr(type(self), name)
        if image is not None and not is_own and hasattr(image, name):
            setattr(image, name, value)
        else:
            super().__setattr__(name, value)


def _sizes(
    images: torch.Tensor | Sequence[torch.Tensor],
) -> list[tuple[int, ...]]:
    """Heights and widths of the images of a batch."""
    return [tuple(image.shape[-2:]) for image in images]
