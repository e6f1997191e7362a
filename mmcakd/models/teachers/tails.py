"""The frozen tail of a teacher, ready to run on features of another model."""

from collections.abc import Callable

import torch
from torch import nn

from ..stages import (
    check_blocks,
    find_backbone,
    find_family,
    find_taps,
    read_grid,
    to_layout,
    to_map,
    to_tokens,
)

Grid = tuple[int, int]


class Tail(nn.Module):
    """The part of a teacher behind one of its stages.

    A tail runs tokens of any origin, with gradient, through the teacher's
    own modules; their parameters stay frozen. It remembers from the teacher's
    last forward what patch tokens do not carry: their grid, and the class or
    register tokens that belong to the same images.

    It is held by a :class:`Teacher`, never by a trainable module.

    Args:
        backbone (nn.Module): The teacher's backbone.
        from_stage (int): The stage, 1 to 3, whose output the tail takes.
        to_stage (int): The stage, up to 4, whose output it returns.
    """

    #: Whether any tail runs: what it sends through the teacher's modules is
    #: nothing to remember.
    replaying = False

    def __init__(
        self, backbone: nn.Module, from_stage: int, to_stage: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.from_stage = from_stage
        self.to_stage = to_stage
        self.grid: Grid | None = None

    def __deepcopy__(self, memo: dict) -> 'Tail':
        """Stay with the one teacher it belongs to."""
        return self

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run patch tokens ``(N, L, C)`` to ``(N, L', C')``.

        ``N`` may be a multiple of the teacher's last batch: several views of
        the same images, one behind the other.

        Raises:
            RuntimeError: The teacher has not run yet.
            ValueError: The tokens do not fit the stage's grid.
        """
        if self.grid is None:
            raise RuntimeError(
                'the teacher has to run on a batch before its tail can be '
                'replayed'
            )
        height, width = self.grid
        if tokens.shape[1] != height * width:
            raise ValueError(
                f'{tokens.shape[1]} tokens do not fit the grid of the '
                f"teacher's stage {self.from_stage}, {height} x {width}; "
                'project the student to that grid (`shape_like` of the '
                'connector)'
            )
        Tail.replaying = True
        try:
            return self.run(tokens)
        finally:
            Tail.replaying = False

    def watch(self, module: nn.Module, remember: Callable) -> None:
        """Remember something whenever the teacher runs one of its modules.

        Args:
            module (nn.Module): The module.
            remember (Callable): Is called with its inputs and outputs.
        """

        def hook(module, inputs, outputs) -> None:
            if not Tail.replaying:
                remember(inputs, outputs)

        module.register_forward_hook(hook)

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the family's modules."""
        raise NotImplementedError


class ChainTail(Tail):
    """What lies behind a stage of a network that is a chain of modules.

    Tokens are viewed in the layout that the network works in, and back.
    """

    def __init__(self, backbone, from_stage, to_stage, blocks=None):
        super().__init__(backbone, from_stage, to_stage)
        self.start, *behind = find_taps(backbone, blocks)[
            from_stage - 1 : to_stage
        ]
        self.end = behind[-1]
        self.steps = [path for tap in behind for path in tap.steps]
        if self.end.raw:
            self.steps.append(self.end.source)
        self.memory_format = torch.contiguous_format
        self.extra_tokens: torch.Tensor | None = None
        get = backbone.get_submodule
        self.watch(get(self.start.source), self._remember)
        if self.start.grid_source:
            self.watch(get(self.start.grid_source), self._remember_grid)

    def _remember(self, inputs, outputs) -> None:
        stage = self.start.pick(outputs)
        if self.start.layout == 'NLC':
            self.extra_tokens = stage[:, : self.start.extra_tokens]
            self.grid = self.start.grid or self.grid
            return
        self.grid = tuple(to_map(stage, self.start.layout).shape[2:])
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
        if self.end.layout == 'NLC':
            return x[:, self.end.extra_tokens :]
        return to_tokens(to_map(x, self.end.layout))


class SwinTail(Tail):
    """Patch merging, the later stages and the final norm of a Swin."""

    def __init__(self, backbone, from_stage, to_stage, blocks=None):
        super().__init__(backbone, from_stage, to_stage)
        end = backbone.stages[from_stage - 1].blocks[-1]
        self.watch(end, self._remember_grid)

    def _remember_grid(self, inputs, outputs) -> None:
        self.grid = read_grid(inputs, outputs)

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        grid = self.grid
        for index in range(self.from_stage, self.to_stage):
            tokens, grid = self.run_stage(index, tokens, grid)
        if self.to_stage == 4:
            norm = getattr(self.backbone, 'norm3', nn.Identity())
            tokens = norm(tokens)
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

    The blocks mix patch tokens with extra tokens. Those of the teacher's own
    forward, for the same images, stand in for the ones a student lacks.
    """

    def __init__(self, backbone, from_stage, to_stage, blocks=None):
        super().__init__(backbone, from_stage, to_stage)
        ends = check_blocks(blocks, len(backbone.layers))
        self.first, self.last = ends[from_stage - 1] + 1, ends[to_stage - 1]
        self.extra_tokens: torch.Tensor | None = None
        self.watch(
            backbone.layers[self.first - 1], self._remember_extra_tokens
        )
        self.watch(backbone.patch_embed, self._remember_grid)

    def _remember_grid(self, inputs, outputs) -> None:
        self.grid = read_grid(inputs, outputs)

    def _remember_extra_tokens(self, inputs, outputs) -> None:
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
        num_extra = self.backbone.num_extra_tokens
        if num_extra:
            tokens = join(self.extra_tokens, tokens)
        context = self.context()
        for layer in self.backbone.layers[self.first : self.last + 1]:
            tokens = layer(tokens, *context)
        if self.to_stage == 4 and self.backbone.final_norm:
            tokens = self.backbone.ln1(tokens)
        return tokens[:, num_extra:]


def join(extra: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Put the teacher's extra tokens in front of every view's tokens."""
    views = len(tokens) // len(extra)
    extra = extra.to(tokens.dtype).repeat(views, 1, 1)
    return torch.cat((extra, tokens), dim=1)


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
    model: nn.Module, from_stage: int, to_stage: int = 4, blocks=None
) -> Tail:
    """Build the tail of a model.

    Raises:
        ValueError: The family has no tail that can be replayed, or the stages
            are out of order.
    """
    if not 1 <= from_stage < to_stage <= 4:
        raise ValueError(
            'a tail runs from a stage of 1 to 3 to a later one of at most 4, '
            f'got from_stage={from_stage}, to_stage={to_stage}'
        )
    _, backbone = find_backbone(model)
    taps = find_taps(backbone, blocks)
    family, _ = find_family(backbone)
    if family in TAILS:
        return TAILS[family](backbone, from_stage, to_stage, blocks)
    if all(tap.steps for tap in taps[from_stage:to_stage]):
        return ChainTail(backbone, from_stage, to_stage, blocks)
    raise ValueError(
        f'the stages of {type(backbone).__name__} cannot be replayed: more '
        'happens between them than calls of modules. docs/families.md lists '
        'the teachers whose tail can be, such as SwinTransformer, '
        'VisionTransformer and ResNet'
    )
