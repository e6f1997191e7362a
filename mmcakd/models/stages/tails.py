"""What lies behind a stage of a model, ready to run on other features."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .families import find_backbone, find_family, find_taps
from .layout import read_grid, to_layout, to_map, to_tokens
from .taps import Tap, check_blocks

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

    #: Whether any tail runs: what it sends through the network's modules is
    #: nothing to remember.
    replaying = False

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
        self.skip_transition = skip_transition
        self.fresh_extra_tokens = fresh_extra_tokens
        self.taps = find_taps(backbone, blocks)
        self.end = self.taps[to_stage - 1]
        self.grid: Grid | None = None
        self.width: int | None = None
        self.end_grid = self.end.grid
        if self.end.grid_source:
            self.watch(self.end.grid_source, self._remember_end_grid)

    def __deepcopy__(self, memo: dict) -> 'Tail':
        """Stay with the one network it belongs to."""
        return self

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
        return to_tokens(to_map(feature, end.layout))

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
        Tail.replaying = True
        try:
            return self.run(tokens)
        finally:
            Tail.replaying = False

    def watch(self, path: str, remember: Callable) -> None:
        """Remember something whenever the network runs one of its modules.

        Args:
            path (str): The module.
            remember (Callable): Is called with its inputs and outputs.
        """

        def hook(module, inputs, outputs) -> None:
            if not Tail.replaying:
                remember(inputs, outputs)

        self.backbone.get_submodule(path).register_forward_hook(hook)

    def watch_first_block(self, path: str, count: int) -> None:
        """Remember the extra tokens that enter the first block."""

        def remember(inputs, outputs) -> None:
            self.extra_tokens = inputs[0][:, :count]

        self.watch(path, remember)

    def _remember_end_grid(self, inputs, outputs) -> None:
        self.end_grid = read_grid(inputs, outputs)

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the family's modules."""
        raise NotImplementedError


class ChainTail(Tail):
    """What lies behind a stage of a network that is a chain of modules.

    Tokens are viewed in the layout that the network works in, and back.
    """

    def __init__(self, backbone, from_stage, to_stage, *args, **kwargs):
        super().__init__(backbone, from_stage, to_stage, *args, **kwargs)
        start, *behind = self.taps[from_stage - 1 : to_stage]
        self.steps = [path for tap in behind for path in tap.steps]
        skipped = behind[0].transition if self.skip_transition else 0
        if skipped:
            # The blocks that follow keep the grid and the layout.
            start = behind[0].raw or behind[0]
            entry = self.steps[skipped - 1]
            self.steps = self.steps[skipped:]
        else:
            entry = start.source
        self.start: Tap = start
        if self.end.raw:
            self.steps.append(self.end.source)
        self.memory_format = torch.contiguous_format
        self.extra_tokens: torch.Tensor | None = None
        self.watch(entry, self._remember)
        if start.grid_source:
            self.watch(start.grid_source, self._remember_grid)
        if start.extra_tokens and self.fresh_extra_tokens:
            first_block = self.taps[0].steps[0]
            self.watch_first_block(first_block, start.extra_tokens)

    def _remember(self, inputs, outputs) -> None:
        stage = self.start.pick(outputs)
        if self.start.layout == 'NLC':
            if not self.fresh_extra_tokens:
                self.extra_tokens = stage[:, : self.start.extra_tokens]
            self.grid = self.start.grid or self.grid
            self.width = stage.shape[2]
            return
        map_ = to_map(stage, self.start.layout)
        self.width, *grid = map_.shape[1:]
        self.grid = tuple(grid)
        # Convolutions differ in the last bits between memory formats.
        last = stage.is_contiguous(memory_format=torch.channels_last)
        self.memory_format = (
            torch.channels_last
            if last and not stage.is_contiguous()
            else torch.contiguous_format
        )

    def _remember_grid(self, inputs, outputs) -> None:
        self.grid = read_grid(inputs, outputs)

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.start.extra_tokens:
            tokens = join(self.extra_tokens, tokens)
        x = to_layout(tokens, self.start.layout, self.grid)
        if x.ndim == 4:
            x = x.contiguous(memory_format=self.memory_format)
        for path in self.steps:
            x = self.backbone.get_submodule(path)(x)
        return x


class SwinTail(Tail):
    """Patch merging, the later stages and the final norm of a Swin."""

    def __init__(self, backbone, from_stage, to_stage, *args, **kwargs):
        super().__init__(backbone, from_stage, to_stage, *args, **kwargs)
        if self.skip_transition:
            entry = f'stages.{from_stage}.blocks.0'
        else:
            entry = self.taps[from_stage - 1].source
        self.watch(entry, self._remember_size)

    def _remember_size(self, inputs, outputs) -> None:
        self.grid = read_grid(inputs, outputs)
        self.width = inputs[0].shape[2]

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        grid, first = self.grid, self.from_stage
        if self.skip_transition:
            for block in self.backbone.stages[first].blocks:
                tokens = block(tokens, grid)
            first += 1
        for index in range(first, self.to_stage):
            tokens, grid = self.run_stage(index, tokens, grid)
        if self.to_stage == len(self.taps):
            name = f'norm{self.to_stage - 1}'
            tokens = getattr(self.backbone, name, nn.Identity())(tokens)
        return tokens

    def run_stage(
        self, index: int, tokens: torch.Tensor, grid: Grid
    ) -> tuple[torch.Tensor, Grid]:
        """Run a stage with the patch merging in front of it."""
        previous, stage = self.backbone.stages[index - 1 : index + 1]
        tokens, grid = previous.downsample(tokens, grid)
        return stage(tokens, grid, do_downsample=False)


class SwinV2Tail(SwinTail):
    """The same of a Swin V2, whose stages begin with the patch merging."""

    def run_stage(
        self, index: int, tokens: torch.Tensor, grid: Grid
    ) -> tuple[torch.Tensor, Grid]:
        """Run a stage."""
        return self.backbone.stages[index](tokens, grid)


class PlainViTTail(Tail):
    """The last blocks and the final norm of a plain ViT.

    The blocks mix patch tokens with extra tokens. Those of the network's own
    forward, for the same images, stand in for the ones that features of
    another model lack.
    """

    def __init__(self, backbone, from_stage, to_stage, blocks=None, **kwargs):
        super().__init__(backbone, from_stage, to_stage, blocks, **kwargs)
        ends = check_blocks(blocks, len(backbone.layers))
        self.first, self.last = ends[from_stage - 1] + 1, ends[to_stage - 1]
        self.extra_tokens: torch.Tensor | None = None
        self.watch(f'layers.{self.first - 1}', self._remember)
        self.watch('patch_embed', self._remember_grid)
        if self.fresh_extra_tokens:
            self.watch_first_block('layers.0', backbone.num_extra_tokens)

    def _remember_grid(self, inputs, outputs) -> None:
        self.grid = read_grid(inputs, outputs)

    def _remember(self, inputs, outputs) -> None:
        self.width = outputs.shape[2]
        if not self.fresh_extra_tokens:
            self.extra_tokens = outputs[:, : self.backbone.num_extra_tokens]

    def context(self) -> tuple:
        """What this family hands to every block besides the tokens."""
        if type(self.backbone).__name__ == 'ViTEVA02':
            return (self.grid,)
        if not hasattr(self.backbone, 'rel_pos_bias'):
            return ()
        # A BEiT's blocks take a bias that they share, or None.
        shared_bias = self.backbone.rel_pos_bias
        return (shared_bias and shared_bias(),)

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.backbone.num_extra_tokens:
            tokens = join(self.extra_tokens, tokens)
        context = self.context()
        for layer in self.backbone.layers[self.first : self.last + 1]:
            tokens = layer(tokens, *context)
        if self.to_stage == 4 and self.backbone.final_norm:
            tokens = self.backbone.ln1(tokens)
        return tokens


def join(extra: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Put the network's extra tokens in front of every view's tokens."""
    views = len(tokens) // len(extra)
    extra = extra.to(tokens.dtype).repeat(views, 1, 1)
    return torch.cat((extra, tokens), dim=1)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by the batch and yet learn nothing from it.

    For a part of a model in training that runs once more in the same step,
    on features that the model itself will never see.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.training
        and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


#: Family -> its tail. Those that are chains of modules need no entry.
TAILS: dict[str, Callable[..., Tail]] = {
    'SwinTransformer': SwinTail,
    'SwinTransformerV2': SwinV2Tail,
    'DaViT': SwinTail,
    'VisionTransformer': PlainViTTail,
    'BEiTViT': PlainViTTail,
    'ViTEVA02': PlainViTTail,
}


def build_tail(
    model: nn.Module, from_stage: int, to_stage: int = 4, blocks=None, **kwargs
) -> Tail:
    """Build the tail of a model.

    Args:
        model (nn.Module): A network of a known family, or a classifier or
            detector with one inside.
        from_stage (int): See :class:`Tail`.
        to_stage (int): See :class:`Tail`. Defaults to 4.
        blocks (Sequence[int], optional): See :class:`Tail`.
        **kwargs: Other arguments of :class:`Tail`.

    Raises:
        ValueError: The family has no tail that can be replayed, or the stages
            are out of order.
    """
    if not 1 <= from_stage < to_stage:
        raise ValueError(
            'a tail runs from a stage of 1 or more to a later one, got '
            f'from_stage={from_stage}, to_stage={to_stage}'
        )
    _, backbone = find_backbone(model)
    taps = find_taps(backbone, blocks)
    family, _ = find_family(backbone)
    if to_stage > len(taps):
        raise ValueError(
            f'a {type(backbone).__name__} has {len(taps)} stages, but its '
            f'tail should run over from_stage={from_stage}, '
            f'to_stage={to_stage}'
        )
    if family in TAILS:
        return TAILS[family](backbone, from_stage, to_stage, blocks, **kwargs)
    if all(tap.steps for tap in taps[from_stage:to_stage]):
        return ChainTail(backbone, from_stage, to_stage, blocks, **kwargs)
    raise ValueError(
        f'the stages of {type(backbone).__name__} cannot be replayed: more '
        'happens between them than calls of modules. docs/families.md lists '
        'the networks whose tail can be, such as SwinTransformer, '
        'VisionTransformer and ResNet'
    )
