"""The four stages of a model as feature maps."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder
from torch import nn

from mmcakd.arguments import NonNegativeInt
from mmcakd.registry import TASK_UTILS

from ..stages import (
    StageTokens,
    Tap,
    find_taps,
    read_grid,
    to_map,
    to_stage_tokens,
)

Stage = torch.Tensor | StageTokens


@TASK_UTILS.register_module()
class StageOutputsRecorder(ModuleOutputsRecorder):
    """Record the four stages of a model as maps ``(N, C, H, W)``.

    In configs its type is ``mmcakd.StageOutputs``, and it needs no arguments:
    paths, layouts and grids are those of the model's family. Unless asked
    otherwise, class and other extra tokens are dropped, and the last stage is
    read after the network's final norm where that norm works on the map.

    Args:
        final_norm (bool): False reads the last stage before the network's
            final norm. Defaults to True.
        extra_tokens (bool): True records a stage of a network that works on
            tokens as :class:`mmcakd.models.stages.StageTokens`, with class
            and other extra tokens; a convolutional one stays a map. Defaults
            to False.
        blocks (Sequence[int], optional): For plain ViTs and MLPs, the last
            block of each of the four stages, 0-based. Defaults to the split
            of :func:`mmcakd.models.stages.split_blocks`.
        taps (Sequence[dict], optional): Four dicts of
            :class:`mmcakd.models.stages.Tap`'s arguments, for families that
            are not known.

    Raises:
        ValueError: An unknown family, an unknown tap, or not four taps.

    Examples:
        >>> import torch
        >>> from mmcakd.models.recorders import StageOutputsRecorder
        >>> from mmpretrain.models import VisionTransformer
        >>> vit = VisionTransformer('deit-tiny', img_size=64)
        >>> recorder = StageOutputsRecorder()
        >>> recorder.initialize(vit)
        >>> with recorder:
        ...     _ = vit(torch.rand(2, 3, 64, 64))
        >>> recorder.get_record_data(data_idx=3).shape
        torch.Size([2, 192, 4, 4])
    """

    def __init__(
        self,
        blocks: Sequence[NonNegativeInt] | None = None,
        taps: Sequence[dict] | None = None,
        final_norm: bool = True,
        extra_tokens: bool = False,
    ) -> None:
        super().__init__(source='four stages')
        if taps is not None and len(taps) != 4:
            raise ValueError(f'`taps` must name four stages, got {len(taps)}')
        self.blocks = blocks
        self.taps = [Tap(**tap) for tap in taps] if taps else []
        self.final_norm = final_norm
        self.extra_tokens = extra_tokens
        #: Indices of the stages to keep; the distiller narrows it to those
        #: that are read, so that no other feature stays in memory.
        self.stages_to_keep = {0, 1, 2, 3}
        self._grids: dict[int, list[tuple[int, int]]] = {}

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Hook the four taps and, for tokens, what tells their grid."""
        self.taps = self.taps or find_taps(model, self.blocks)
        if not self.final_norm:
            self.taps = [tap.raw or tap for tap in self.taps]
        modules = dict(model.named_modules())
        for index, tap in enumerate(self.taps):
            for path in filter(None, (tap.source, tap.grid_source)):
                if path not in modules:
                    raise ValueError(unknown_tap(path, modules))
            modules[tap.source].register_forward_hook(
                partial(self._record, index)
            )
            if tap.grid_source:
                modules[tap.grid_source].register_forward_hook(
                    partial(self._record_grid, index)
                )

    def _record(self, index: int, module, inputs, outputs: Any) -> None:
        if self.recording and index in self.stages_to_keep:
            feature = self.taps[index].pick(outputs)
            self._data_buffer[index].append(feature)

    def _record_grid(self, index: int, module, inputs, outputs: Any) -> None:
        if self.recording:
            self._grids[index].append(read_grid(inputs, outputs))

    def get_record_data(
        self, record_idx: int = 0, data_idx: int | None = None
    ) -> Stage | tuple[Stage, ...]:
        """Get one stage (``data_idx`` of 0 to 3) or a tuple of all four."""
        if data_idx is None:
            return tuple(self.get_record_data(record_idx, i) for i in range(4))
        tap = self.taps[data_idx]
        if record_idx >= len(self._data_buffer[data_idx]):
            raise RuntimeError(
                f'stage {data_idx + 1} ({tap.source}) was recorded '
                f'{len(self._data_buffer[data_idx])} times in this forward, '
                f'but record {record_idx} is asked for'
            )
        told = self._grids[data_idx]
        view = to_stage_tokens if self.extra_tokens else to_map
        return view(
            self._data_buffer[data_idx][record_idx],
            tap.layout,
            told[record_idx] if told else tap.grid,
            tap.extra_tokens,
        )

    def reset_data_buffer(self) -> None:
        """Forget what was recorded."""
        self._data_buffer = [[] for _ in range(4)]
        self._grids = {index: [] for index in range(4)}


def unknown_tap(path: str, modules: dict[str, nn.Module]) -> str:
    """Say that a model has no such module, and what comes close."""
    from difflib import get_close_matches

    close = get_close_matches(path, modules, n=3, cutoff=0.4)
    hint = f'; did you mean {" or ".join(map(repr, close))}?' if close else ''
    return f'the model has no module {path!r}{hint}'
