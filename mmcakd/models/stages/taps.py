"""What a tap is, and what the lists of taps are made with."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mmcakd.arguments import Grid, NonNegativeInt, check_on_construction

Blocks = Sequence[int] | None
#: The modules that make each of the four stages, by path, in the order they
#: run.
Steps = Sequence[Sequence[str]]


@check_on_construction
@dataclass(frozen=True)
class Tap:
    """The output of a module, and how to read a map from it.

    Args:
        source (str): Path of the module in the model.
        layout (str): ``'NCHW'``, ``'NHWC'``, ``'NLC'`` or ``'NLHWC'``; see
            :func:`mmcakd.models.stages.to_map`.
        extra_tokens (int): Class, distillation and register tokens in front
            of the patch tokens.
        grid_source (str, optional): Path of a module that tells the grid of
            the tokens: by the map it returns (the convolution of a patch
            embedding), as the second of its outputs (a patch embedding) or
            of its inputs (a window attention block), or by the map it takes.
        grid (tuple[int, int], optional): The grid itself, for networks built
            for one image size.
        output (int): Which output, of a module with several. Defaults to 0.
        copy (bool): Whether to keep a copy, because the network writes into
            the output afterwards. Defaults to False.
        raw (Tap | dict, optional): Where the stage is before the network's
            final norm, if ``source`` is that norm.
        steps (Sequence[str], optional): Paths of the modules that lead here
            from the stage before, if nothing happens between them; they can
            be replayed.
        transition (int): How many of the steps, from the first, bring the
            stage's grid and width (patch merging, a strided convolution) and
            are no part of its blocks. Defaults to 0.
        entry (Tap, optional): The same of a stage that cannot be replayed
            step by step: what that module returns.
        has_branches (bool): Whether the network carries more than this
            feature to the next stage, such as the outputs of another branch.
            Defaults to False.
    """

    source: str
    layout: str = 'NCHW'
    extra_tokens: NonNegativeInt = 0
    grid_source: str | None = None
    grid: Grid | None = None
    output: int = 0
    copy: bool = False
    raw: 'Tap | dict | None' = None
    steps: Sequence[str] | None = None
    transition: NonNegativeInt = 0
    entry: 'Tap | None' = None
    has_branches: bool = False

    def __post_init__(self) -> None:
        layouts = ('NCHW', 'NHWC', 'NLC', 'NLHWC')
        if self.layout not in layouts:
            raise ValueError(
                f'tap {self.source!r}: layout {self.layout!r} is not one of '
                f'{layouts}'
            )
        needs_grid = self.layout in ('NLC', 'NLHWC')
        if needs_grid and not (self.grid_source or self.grid):
            raise ValueError(
                f'tap {self.source!r}: tokens need `grid_source`, the module '
                "whose output tells the grid, e.g. 'backbone.patch_embed'"
            )
        if isinstance(self.raw, dict):
            object.__setattr__(self, 'raw', Tap(**self.raw))

    def pick(self, outputs: Any) -> torch.Tensor:
        """Pick the feature from what the module returns."""
        if isinstance(outputs, tuple | list):
            outputs = outputs[self.output]
        return outputs.clone() if self.copy else outputs

    def inside(self, prefix: str) -> 'Tap':
        """Move a tap along with the module it lies in."""
        return replace(
            self,
            source=prefix + self.source,
            grid_source=self.grid_source and prefix + self.grid_source,
            raw=self.raw and self.raw.inside(prefix),
            entry=self.entry and self.entry.inside(prefix),
            steps=self.steps and tuple(prefix + path for path in self.steps),
        )


def behind_norm(tap: Tap, norm: str, **kwargs) -> Tap:
    """Move a tap behind the final norm, remembering where it was.

    Args:
        tap (Tap): The end of the last stage.
        norm (str): Path of the norm.
        **kwargs: What else is different behind it, e.g. its layout.
    """
    return replace(tap, source=norm, output=0, raw=tap, **kwargs)


def enter(taps: Iterable[Tap], entries: Iterable[Tap]) -> list[Tap]:
    """Tell what enters the blocks of each stage but the first.

    Args:
        taps (Iterable[Tap]): The ends of the stages.
        entries (Iterable[Tap]): What the modules return that bring the grid
            and width of the second stage, the third and so on.
    """
    first, *others = taps
    return [
        first,
        *(
            replace(tap, entry=entry)
            for tap, entry in zip(others, entries, strict=True)
        ),
    ]


def chain(steps: Steps, norm: str | None = None, **kwargs) -> list[Tap]:
    """Tap a network whose modules run one after the other.

    Args:
        steps (Sequence[Sequence[str]]): The modules of each stage; of the
            first only the last is needed.
        norm (str, optional): The final norm.
        **kwargs: Arguments of every :class:`Tap`.
    """
    taps = [Tap(step[-1], steps=tuple(step), **kwargs) for step in steps]
    if norm is not None:
        taps[-1] = behind_norm(taps[-1], norm)
    return taps


def paths(net: nn.Module, name: str) -> list[str]:
    """Paths of all children of a part of a network, or of the whole."""
    prefix = f'{name}.' if name else ''
    parent = net.get_submodule(name)
    return [prefix + child for child, _ in parent.named_children()]


def alternate(stages: Iterable[str], between: Iterable[str]) -> Steps:
    """Steps of stages that each have a module in front of them.

    The taps then have a ``transition`` of 1.

    Args:
        stages (Iterable[str]): Paths of the stages.
        between (Iterable[str]): Path of the module in front of each.
    """
    return [[*pair] for pair in zip(between, stages, strict=True)]


def last_four(stages: Sequence[str]) -> Steps:
    """Steps of a network whose last stages are one module each."""
    return [[path] for path in stages[-4:]]


def split_at(modules: Sequence[str], ends: Sequence[str | int]) -> Steps:
    """Split a chain of modules behind the ends, given by path or index."""
    stops = [
        (modules.index(end) if isinstance(end, str) else end) + 1
        for end in ends
    ]
    starts = [0, *stops]
    return [
        modules[start:stop] for start, stop in zip(starts, stops, strict=False)
    ]


def split_by_resolution(net: nn.Module, modules: Sequence[str]) -> Steps:
    """Split a chain of convolutions in front of each that has a stride.

    Returns:
        Sequence[Sequence[str]]: The steps of the last four resolutions.
    """
    steps: list[list[str]] = [[]]
    for path in modules:
        if _downsamples(net.get_submodule(path)):
            steps.append([])
        steps[-1].append(path)
    return steps[-4:]


def _downsamples(module: nn.Module) -> bool:
    strides = (getattr(part, 'stride', 1) for part in module.modules())
    return any(
        max(stride) > 1 if isinstance(stride, tuple) else stride > 1
        for stride in strides
        if isinstance(stride, tuple | int)
    )


def split_blocks(num_blocks: int) -> tuple[int, int, int, int]:
    """Last block of each stage of an isotropic network, 0-based.

    Follows the split of Swin-T (2, 2, 6, 2) for 12 blocks and of Swin-S
    (2, 2, 18, 2) for 24, as OFA-KD does; other depths in proportion.

    Examples:
        >>> split_blocks(12), split_blocks(24), split_blocks(8)
        ((1, 3, 9, 11), (1, 3, 21, 23), (1, 3, 5, 7))
    """
    if num_blocks < 4:
        raise ValueError(
            f'{num_blocks} blocks cannot be split into four stages; name the '
            'taps with `taps`'
        )
    if num_blocks < 8:
        return 0, 1, num_blocks - 2, num_blocks - 1
    return 1, 3, num_blocks - 3, num_blocks - 1


def check_blocks(blocks: Blocks, num_blocks: int) -> tuple[int, ...]:
    """Check a choice of four stage ends, or make the default one."""
    if blocks is None:
        return split_blocks(num_blocks)
    blocks = tuple(blocks)
    if (
        len(blocks) != 4
        or list(blocks) != sorted(set(blocks))
        or blocks[0] < 0
        or blocks[-1] != num_blocks - 1
    ):
        raise ValueError(
            f'`blocks` must be four increasing block indices ending with '
            f'{num_blocks - 1}, the last block, but got {blocks}'
        )
    return blocks


@dataclass(frozen=True)
class Family:
    """How to tap the networks of one class.

    Args:
        find (Callable): Lists the taps of a network; for an isotropic one
            its second argument are the last blocks of the stages.
        examples (str): Models of this family.
        isotropic (bool): Whether it has no stages of its own. Defaults to
            False.
        no_tail (str): Why what lies behind its stages cannot be replayed;
            empty if it can.
    """

    find: Callable[..., list[Tap]]
    examples: str
    isotropic: bool = False
    no_tail: str = ''

    def taps(self, net: nn.Module, blocks: Blocks = None) -> list[Tap]:
        """List the taps of a network of this family."""
        if self.isotropic:
            return self.find(net, blocks)
        if blocks is not None:
            raise ValueError(
                f'{type(net).__name__} has stages of its own; `blocks` is '
                'for networks without, such as a plain ViT. Remove it, or '
                'name other ends with `taps`'
            )
        return self.find(net)
