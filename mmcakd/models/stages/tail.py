"""What lies behind a stage of a model, ready to run on other features."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .families import find_taps
from .layout import read_grid, to_layout, to_map, to_tokens
from .taps import Tap, paths

Grid = tuple[int, int]


class Tail(nn.Module):
    """The part of a network behind one of its stages.

    A tail runs tokens of any origin, with gradient, through the network's
    own modules. It remembers from the network's last forward what patch
    tokens do not carry: their grid, and the class or register tokens in front
    of them.

    Args:
        backbone (nn.Module): The network.
        from_stage (int): The stage, counted from 1, whose output the tail
            takes.
        to_stage (int): The stage whose output it returns.
        blocks (Sequence[int], optional): The last block of each stage of an
            isotropic network.
        skip_transition (bool): Whether the tail begins behind the patch
            merging or strided convolution in front of the next stage's
            blocks, where that is a module of its own. Defaults to False.
        fresh_extra_tokens (bool): Which class and register tokens join the
            patch tokens: those of the same images at this depth, or, if True,
            those that enter the first block, which know nothing of the
            images. Defaults to False.

    Attributes:
        end (Tap): The last stage's tap, behind the final norm.
        grid (tuple[int, int]): ``(H, W)`` of the tokens it takes.
        width (int): Their channels.
        end_grid (tuple[int, int]): Grid of the tokens it returns, if the
            network works on tokens there.
    """

    def __init__(
        self,
        backbone: nn.Module,
        from_stage: int,
        to_stage: int,
        blocks=None,
        skip_transition: bool = False,
        fresh_extra_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.from_stage = from_stage
        self.to_stage = to_stage
        self.blocks = blocks
        self.skip_transition = skip_transition
        self.fresh_extra_tokens = fresh_extra_tokens
        self.taps = find_taps(backbone, blocks)
        self.end = self.taps[to_stage - 1]
        self.grid: Grid | None = None
        self.width: int | None = None
        self.extra_tokens: torch.Tensor | None = None
        self.memory_format = torch.contiguous_format
        self.end_grid = self.end.grid
        if self.end.grid_source:
            self.watch(self.end.grid_source, self._remember_end_grid)

    def __deepcopy__(self, memo: dict) -> 'Tail':
        """Belong to the copy of the network, or stay if that is shared."""
        backbone = memo.get(id(self.backbone))
        if backbone is None:
            return self
        return type(self)(
            backbone,
            self.from_stage,
            self.to_stage,
            self.blocks,
            self.skip_transition,
            self.fresh_extra_tokens,
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run patch tokens ``(N, L, C)`` to ``(N, L', C')``.

        ``N`` may be a multiple of the network's last batch: several views of
        the same images, one behind the other.

        Raises:
            RuntimeError: The network has not run yet.
            ValueError: The tokens do not fit the stage's grid.
        """
        return self.view(self.replay(tokens))

    def view(self, feature: torch.Tensor) -> torch.Tensor:
        """View what :meth:`replay` returns as patch tokens."""
        end = self.end
        if end.layout == 'NLC':
            return feature[:, end.extra_tokens :]
        return to_tokens(to_map(feature, end.layout, end.grid))

    def replay(self, tokens: torch.Tensor) -> torch.Tensor:
        """Do the same, but return the feature in the network's own layout."""
        if self.grid is None:
            raise RuntimeError(
                'the network has to run on a batch before its tail can be '
                'replayed'
            )
        height, width = self.grid
        if tokens.shape[1] != height * width:
            raise ValueError(
                f'{tokens.shape[1]} tokens do not fit the grid of '
                f'stage {self.from_stage}, {height} x {width}; '
                'project them to that grid (`shape_like` of the connector)'
            )
        with _replaying(self.backbone):
            return self.run(tokens)

    def watch(self, path: str, remember: Callable) -> None:
        """Remember something whenever the network runs one of its modules.

        What a tail sends through them is no run of the network, and neither
        is that of a copy, which takes the hooks along.

        Args:
            path (str): The module.
            remember (Callable): Is called with its inputs and outputs.
        """

        def hook(module, inputs, outputs) -> None:
            if module is watched and not _is_replayed(self.backbone):
                remember(inputs, outputs)

        watched = self.backbone.get_submodule(path)
        watched.register_forward_hook(hook)

    def take(self, start: Tap, source: str) -> None:
        """Take tokens in place of what a module returns.

        Args:
            start (Tap): What is read there.
            source (str): The module, which may be another one that returns
                the same.
        """
        self.start = start
        self.watch(source, self._remember)
        if start.grid_source:
            self.watch(start.grid_source, self._remember_grid)
        if start.extra_tokens and self.fresh_extra_tokens:
            self.watch(self.find_first_block(), self._remember_fresh)

    def find_first_block(self) -> str:
        """Path of the first block, which extra tokens enter."""
        container, _, _ = self.taps[0].source.rpartition('.')
        return paths(self.backbone, container)[0]

    def _remember(self, inputs, outputs) -> None:
        stage = self.start.pick(outputs)
        if self.start.layout == 'NLC':
            if not self.fresh_extra_tokens:
                extra = stage[:, : self.start.extra_tokens]
                # A view would keep the whole stage.
                self.extra_tokens = extra.detach().clone()
            self.grid = self.start.grid or self.grid
            self.width = stage.shape[2]
            return
        map_ = to_map(stage, self.start.layout, self.start.grid)
        self.width, *grid = map_.shape[1:]
        self.grid = tuple(grid)
        # Convolutions differ in the last bits between memory formats.
        last = stage.stride(1) == 1 and not stage.is_contiguous()
        self.memory_format = (
            torch.channels_last if last else torch.contiguous_format
        )

    def _remember_grid(self, inputs, outputs) -> None:
        self.grid = read_grid(inputs, outputs)

    def _remember_fresh(self, inputs, outputs) -> None:
        # With grad: they are parameters, which a tail in training trains.
        self.extra_tokens = inputs[0][:, : self.start.extra_tokens]

    def _remember_end_grid(self, inputs, outputs) -> None:
        self.end_grid = read_grid(inputs, outputs)

    def lay_out(self, tokens: torch.Tensor) -> torch.Tensor:
        """View patch tokens as the network works on them at the start."""
        if self.start.extra_tokens:
            tokens = join(self.extra_tokens, tokens)
        x = to_layout(tokens, self.start.layout, self.grid, self.start.grid)
        if x.ndim == 4:
            x = x.contiguous(memory_format=self.memory_format)
        return x

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the family's modules."""
        raise NotImplementedError


def join(extra: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Put the network's extra tokens in front of every view's tokens."""
    return torch.cat((repeat(extra, len(extra), tokens), tokens), dim=1)


def repeat(own: Any, batch: int, tokens: torch.Tensor) -> Any:
    """Repeat what is the network's own for several views of its images.

    Args:
        own (Any): A feature of the network, which is repeated in the
            tokens' precision, or anything else.
        batch (int): Images of the network's last forward.
        tokens (Tensor): Of all views.

    Raises:
        ValueError: The tokens are not of whole views.
    """
    if not isinstance(own, torch.Tensor) or not own.is_floating_point():
        return own
    if len(tokens) % batch:
        raise ValueError(
            f'tokens of {len(tokens)} images cannot be replayed beside '
            f'features of the {batch} that the network has seen: give it the '
            'same images, or several views of them'
        )
    own, views = own.to(tokens.dtype), len(tokens) // batch
    # A copy may differ in its strides, and what is made of it in last bits.
    return own if views == 1 else own.repeat(views, *[1] * (own.ndim - 1))


@contextmanager
def _replaying(network: nn.Module) -> Iterator[None]:
    """Mark a network as one whose modules run on features of others."""
    network.runs_features_of_others = True
    try:
        yield
    finally:
        del network.runs_features_of_others


def _is_replayed(network: nn.Module) -> bool:
    return hasattr(network, 'runs_features_of_others')
