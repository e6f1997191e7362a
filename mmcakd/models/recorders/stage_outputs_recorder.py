"""The stages of a model as feature maps."""

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
    find_backbone,
    find_taps,
    read_grid,
    to_map,
    to_stage_tokens,
)

Stage = torch.Tensor | StageTokens


@TASK_UTILS.register_module()
class StageOutputsRecorder(ModuleOutputsRecorder):
    """Record the stages of a model as maps ``(N, C, H, W)``.

    In configs its type is ``mmcakd.StageOutputs``, and it needs no arguments:
    paths, layouts and grids are those of the model's family. Unless asked
    otherwise, class and other extra tokens are dropped, and the last stage is
    read after the network's final norm where that norm works on the map.

    Most models have four stages. In one of ``n`` the ``data_idx`` of a
    reference is 0 to ``n - 1``, or -1 for the last and so on. A model is asked
    for the stages that are read and for no others.

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
        taps (Sequence[dict], optional): A dict of
            :class:`mmcakd.models.stages.Tap`'s arguments for each stage, for
            families that are not known.

    Raises:
        ValueError: A stage is read of an unknown family, or one that does not
            exist; an unknown tap.

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
        super().__init__(source='stages')
        if taps is not None and not taps:
            raise ValueError('`taps` must name at least one stage')
        self.blocks = blocks
        self.taps = [Tap(**tap) for tap in taps] if taps else []
        self.final_norm = final_norm
        self.extra_tokens = extra_tokens
        #: Indices of the stages to keep, or None for all; the distiller
        #: narrows it to those that are read, so that no other feature stays
        #: in memory.
        self.stages_to_keep: set[int] | None = None
        self._grids: dict[int, list[tuple[int, int]]] = {}
        self._unknown = ''
        self._network = 'model'

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Hook the taps and, for tokens, what tells their grid."""
        try:
            self.taps = self.taps or find_taps(model, self.blocks)
        except ValueError as error:
            reads_none = self.stages_to_keep == set()
            if self.blocks or not reads_none:
                raise
            # Until one is asked for.
            self._unknown = str(error)
            return
        self._network = type(find_backbone(model)[1]).__name__
        if self.stages_to_keep is not None:
            self.stages_to_keep = set(map(self._place, self.stages_to_keep))
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
        kept = self.stages_to_keep
        if self.recording and (kept is None or index in kept):
            feature = self.taps[index].pick(outputs)
            self._data_buffer[index].append(feature)

    def _record_grid(self, index: int, module, inputs, outputs: Any) -> None:
        if self.recording:
            self._grids[index].append(read_grid(inputs, outputs))

    def get_record_data(
        self, record_idx: int = 0, data_idx: int | None = None
    ) -> Stage | tuple[Stage, ...]:
        """Get one stage, or a tuple of all of them."""
        if self._unknown:
            raise ValueError(self._unknown)
        if data_idx is None:
            places = range(len(self.taps))
            return tuple(self.get_record_data(record_idx, i) for i in places)
        data_idx = self._place(data_idx)
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
        self._data_buffer = [[] for _ in self.taps]
        self._grids = {index: [] for index in range(len(self.taps))}

    def _place(self, data_idx: int) -> int:
        """Count a stage from the first one."""
        count = len(self.taps)
        if not isinstance(data_idx, int) or not -count <= data_idx < count:
            places = ', '.join(map(str, range(count)))
            raise ValueError(
                f'there is no stage data_idx={data_idx!r}: the '
                f'{self._network} has {count} stage{"s"[: count - 1]}, with '
                f'data_idx {places}, or -1 for the last; name others in the '
                "recorder: taps=[dict(source='...'), ...]"
            )
        return data_idx % count


def unknown_tap(path: str, modules: dict[str, nn.Module]) -> str:
    """Say that a model has no such module, and what comes close."""
    from difflib import get_close_matches

    close = get_close_matches(path, modules, n=3, cutoff=0.4)
    hint = f'; did you mean {" or ".join(map(repr, close))}?' if close else ''
    return f'the model has no module {path!r}{hint}'
