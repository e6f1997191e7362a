"""Queries, keys and values of a self-attention block."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmpretrain.models.utils import (
    BEiTAttention,
    MultiheadAttention,
    ShiftWindowMSA,
)
from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder
from torch import nn

from mmcakd.registry import TASK_UTILS

from ..stages import find_backbone, find_family, read_grid

Grid = tuple[int, int]

#: Class name as in :data:`mmcakd.models.stages.FAMILIES` -> its attention.
ATTENTIONS = dict(
    VisionTransformer=MultiheadAttention,
    BEiTViT=BEiTAttention,
    SwinTransformer=ShiftWindowMSA,
)
#: Why the attention of others is another formula.
OTHER_ATTENTIONS = dict(
    ViTEVA02='whose positions rotate queries and keys',
    SwinTransformerV2='whose attention compares by cosine',
)


class Windows(NamedTuple):
    """The windows that bound attention on a grid of ``L`` tokens.

    There are ``W`` windows of ``P`` places; places outside of the grid are
    padding.

    Attributes:
        index (Tensor): The token at each place, ``(W, P)``; ``L`` for
            padding.
        places (Tensor): The place of each token, ``(L,)``, counted through
            all windows.
        mask (Tensor): Which places attend to which, ``(W, P, P)``: those of
            tokens that lie together on the grid. Padding attends to itself.

    Examples:
        >>> import torch
        >>> from mmcakd.models.recorders.attention_recorder import (
        ...     find_windows)
        >>> windows = find_windows((4, 6), size=2, shift=0, device='cpu')
        >>> tokens = torch.rand(2, 8, 24, 16)
        >>> windows.fold(tokens).shape
        torch.Size([12, 8, 4, 16])
        >>> torch.equal(windows.unfold(windows.fold(tokens)), tokens)
        True
    """

    index: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor

    def fold(self, tokens: torch.Tensor) -> torch.Tensor:
        """Fold the windows of ``(N, heads, L, d)`` into the batch.

        Returns:
            Tensor: ``(N * W, heads, P, d)``; zero at padding.
        """
        padded = F.pad(tokens, (0, 0, 0, 1))
        places = padded.index_select(2, self.index.flatten())
        folded = places.unflatten(2, self.index.shape)
        return folded.transpose(1, 2).flatten(0, 1)

    def unfold(self, tokens: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`fold`, dropping what is at padding."""
        places = tokens.unflatten(0, (-1, len(self.index))).transpose(1, 2)
        return places.flatten(2, 3).index_select(2, self.places)


@lru_cache(maxsize=64)
def find_windows(
    grid: Grid, size: int, shift: int, device: torch.device | str
) -> Windows | None:
    """Partition a grid as Swin does.

    Args:
        grid (tuple[int, int]): ``(H, W)``; padded at the bottom and right to
            multiples of ``size``.
        size (int): Side of the windows.
        shift (int): How far the grid is rolled to the top left, as a torus.
        device (torch.device): Where the result lives.

    Returns:
        Windows | None: None where every token attends to every other.
    """
    height, width = grid
    length = height * width
    index = torch.arange(length, device=device).view(height, width)
    index = F.pad(index, (0, -width % size, 0, -height % size), value=length)
    index = index.roll((-shift, -shift), (0, 1))
    # What is rolled over an edge is no neighbour of what stands there.
    rows, cols = (
        torch.arange(side, device=device) >= side - shift
        for side in index.shape
    )
    region = 2 * rows[:, None] + 1 * cols
    region = region.masked_fill(index == length, -1)

    def split(tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens.unflatten(1, (-1, size)).unflatten(0, (-1, size))
        return tokens.transpose(1, 2).reshape(-1, size * size)

    index, region = split(index), split(region)
    mask = region[:, :, None] == region[:, None, :]
    if len(index) == 1 and mask.all():
        return None
    places = index.flatten().argsort()[:length]
    return Windows(index, places, mask)


class QKV(NamedTuple):
    """Queries, keys and values of the patch tokens, row by row.

    Attributes:
        q (Tensor): ``(N, heads, H * W, d)``.
        k (Tensor): The same shape.
        v (Tensor): The same shape.
        grid (tuple[int, int]): ``(H, W)``.
        windows (Windows, optional): What bounds the attention; None where
            every token attends to every other.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grid: Grid
    windows: Windows | None = None

    def apply(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> 'QKV':
        """Apply a function to queries, keys and values."""
        return self._replace(q=fn(self.q), k=fn(self.k), v=fn(self.v))


@TASK_UTILS.register_module()
class QKVRecorder(ModuleOutputsRecorder):
    """Record queries, keys and values of a block as :class:`QKV`.

    In configs its type is ``mmcakd.QKV``. It knows the attention of
    MMPretrain's ViT, DeiT (also distilled and III), BEiT and Swin, of any
    grid. Class and distillation tokens are dropped. The queries are those
    before they are divided by :math:`\\sqrt d`, and position biases of BEiT
    and Swin belong to the attention, not to the record.

    Args:
        block (int): Which block, counted through all stages of a Swin; -1 is
            the last. Defaults to -1.

    Raises:
        ValueError: A network without such attention, or without that block.

    Examples:
        >>> import torch
        >>> from mmcakd.models.recorders import QKVRecorder
        >>> from mmpretrain.models import VisionTransformer
        >>> vit = VisionTransformer('deit-tiny', img_size=64)
        >>> recorder = QKVRecorder()
        >>> recorder.initialize(vit)
        >>> with recorder:
        ...     _ = vit(torch.rand(2, 3, 64, 64))
        >>> recorder.get_record_data().q.shape
        torch.Size([2, 3, 16, 64])
    """

    def __init__(self, block: int = -1) -> None:
        super().__init__(source=f'attention of block {block}')
        self.block = block
        self._grid: Grid | None = None

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Hook the attention and what tells the grid of its tokens."""
        _, net = find_backbone(model)
        attention = self._find_attention(net)
        if isinstance(attention, ShiftWindowMSA):
            attention.register_forward_pre_hook(self._read_swin_grid)
            record = partial(self._record_windows, attention)
            attention.w_msa.qkv.register_forward_hook(record)
            return
        net.patch_embed.register_forward_hook(self._read_patch_grid)
        extra_tokens = net.num_extra_tokens
        if getattr(attention, 'bias', None) == 'qv_bias':
            # Its linear layer is not called: the bias is put together first.
            record = partial(self._record_beit, extra_tokens)
            attention.register_forward_hook(record)
        else:
            record = partial(self._record, attention.num_heads, extra_tokens)
            attention.qkv.register_forward_hook(record)

    def _find_attention(self, net: nn.Module) -> nn.Module:
        family, _ = find_family(net) or (type(net).__name__, None)
        kind = ATTENTIONS.get(family, ())
        blocks = [m for m in net.modules() if isinstance(m, kind)]
        if not blocks:
            why = OTHER_ATTENTIONS.get(family)
            raise ValueError(
                f'{family} has no queries, keys and values that mmcakd.QKV '
                f'knows{f", {why}" if why else ""}; ViT, DeiT, BEiT and Swin '
                'of MMPretrain have. From a teacher without, learn features '
                'alone (mmcakd.GLPConnector), or, as a ViT or Swin, the '
                'affinities of its map (mmcakd.InversePCAConnector)'
            )
        if not -len(blocks) <= self.block < len(blocks):
            raise ValueError(
                f'`block` is {self.block}, but this {family} has only '
                f'{len(blocks)} blocks'
            )
        return blocks[self.block]

    def _read_patch_grid(self, module, inputs, outputs) -> None:
        self._grid = read_grid(inputs, outputs)

    def _read_swin_grid(self, module, inputs) -> None:
        self._grid = tuple(map(int, inputs[1]))

    def _record(
        self, num_heads: int, extra_tokens: int, module, inputs, outputs
    ) -> None:
        if not self.recording:
            return
        qkv = _split_heads(outputs, num_heads)
        height, width = self._grid
        if qkv.shape[3] != extra_tokens + height * width:
            raise ValueError(
                f'{self.source} has {qkv.shape[3]} tokens, which are not '
                f'{extra_tokens} extra ones and those of the grid '
                f'{self._grid}; mmcakd.QKV needs all patch tokens'
            )
        self._data_buffer.append(QKV(*qkv[:, :, :, extra_tokens:], self._grid))

    def _record_beit(
        self, extra_tokens: int, attention, inputs, outputs
    ) -> None:
        if not self.recording:
            return
        no_bias = torch.zeros_like(attention.v_bias)
        bias = torch.cat((attention.q_bias, no_bias, attention.v_bias))
        qkv = F.linear(inputs[0], attention.qkv.weight, bias)
        self._record(attention.num_heads, extra_tokens, attention, inputs, qkv)

    def _record_windows(
        self, attention: ShiftWindowMSA, module, inputs, outputs
    ) -> None:
        if not self.recording:
            return
        size, shift = attention.window_size, attention.shift_size
        if min(self._grid) == size and not attention.pad_small_map:
            shift = 0
        windows = find_windows(self._grid, size, shift, outputs.device)
        qkv = QKV(
            *_split_heads(outputs, attention.w_msa.num_heads),
            self._grid,
            windows,
        )
        self._data_buffer.append(qkv.apply(windows.unfold) if windows else qkv)


def _split_heads(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    """``(N, L, 3 * heads * d)`` to ``(3, N, heads, L, d)``."""
    return qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
