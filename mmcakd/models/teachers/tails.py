"""The frozen tail of a teacher, ready to run on features of another model."""

from collections.abc import Callable

import torch
from torch import nn

from ..stages import check_blocks, find_backbone

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
        return self.run(tokens)

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the family's modules."""
        raise NotImplementedError


class SwinTail(Tail):
    """Patch merging, the later stages and the final norm of a Swin."""

    def __init__(self, backbone, from_stage, to_stage, blocks=None):
        super().__init__(backbone, from_stage, to_stage)
        end = backbone.stages[from_stage - 1].blocks[-1]
        end.register_forward_hook(self._remember_grid)

    def _remember_grid(self, module, inputs, outputs) -> None:
        self.grid = tuple(map(int, inputs[1]))

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        grid = self.grid
        for index in range(self.from_stage, self.to_stage):
            previous, stage = self.backbone.stages[index - 1 : index + 1]
            tokens, grid = previous.downsample(tokens, grid)
            tokens, grid = stage(tokens, grid, do_downsample=False)
        if self.to_stage == 4:
            norm = getattr(self.backbone, 'norm3', nn.Identity())
            tokens = norm(tokens)
        return tokens


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
        end = backbone.layers[self.first - 1]
        end.register_forward_hook(self._remember_extra_tokens)
        backbone.patch_embed.register_forward_hook(self._remember_grid)

    def _remember_grid(self, module, inputs, outputs) -> None:
        self.grid = tuple(map(int, outputs[1]))

    def _remember_extra_tokens(self, module, inputs, outputs) -> None:
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
            views = len(tokens) // len(self.extra_tokens)
            extra = self.extra_tokens.to(tokens.dtype).repeat(views, 1, 1)
            tokens = torch.cat((extra, tokens), dim=1)
        context = self.context()
        for layer in self.backbone.layers[self.first : self.last + 1]:
            tokens = layer(tokens, *context)
        if self.to_stage == 4 and self.backbone.final_norm:
            tokens = self.backbone.ln1(tokens)
        return tokens[:, num_extra:]


#: Class name -> the tail of that family.
TAILS: dict[str, Callable[..., Tail]] = {
    'SwinTransformer': SwinTail,
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
    for cls in type(backbone).__mro__:
        if cls.__name__ in TAILS:
            return TAILS[cls.__name__](backbone, from_stage, to_stage, blocks)
    raise ValueError(
        f'the stages of {type(backbone).__name__} cannot be replayed; '
        f'teachers whose tail can be: {", ".join(TAILS)}'
    )
