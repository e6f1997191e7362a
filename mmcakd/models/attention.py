"""Attention as records and connectors know it: queries, keys, values."""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from .functional import full_precision

Grid = tuple[int, int]
#: What of attention is compared.
Target = Literal['output', 'prob', 'score']


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
        >>> from mmcakd.models.attention import (
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


class Attended(NamedTuple):
    """What attention made of queries, keys and values.

    Attributes:
        attention (Tensor): Its output ``(N, heads, L, d)``, its probabilities
            or scores ``(N, heads, L, L)``, or a mean over the heads.
        value (Tensor): The values ``(N, heads, L, d)``.
    """

    attention: torch.Tensor
    value: torch.Tensor


def attend(
    qkv: QKV, target: Target = 'output', average_heads: bool = False
) -> torch.Tensor:
    """Compute attention by its plain formula, without position bias.

    Args:
        qkv (QKV): Queries, keys and values ``(N, heads, L, d)``. With
            windows, attention stays inside them, and scores and
            probabilities are those of each window: ``N`` counts windows,
            ``L`` is their size, and pairs that do not meet are 0.
        target (str): ``'output'`` for ``softmax(Q K' / sqrt(d)) V``,
            ``'prob'`` for the softmax, ``'score'`` for ``Q K' / sqrt(d)``.
        average_heads (bool): Whether to take the mean over the heads.

    Returns:
        Tensor: ``(N, heads, L, d)`` or ``(N, heads, L, L)``, without
        ``heads`` if they are averaged; float32 where autocast is on.

    Examples:
        >>> import torch
        >>> from mmcakd.models.attention import QKV, attend
        >>> qkv = QKV(*torch.rand(3, 2, 4, 15, 8), grid=(3, 5))
        >>> attend(qkv).shape, attend(qkv, 'score', True).shape
        (torch.Size([2, 4, 15, 8]), torch.Size([2, 15, 15]))
    """
    with torch.autocast(qkv.q.device.type, enabled=False):
        qkv = qkv.apply(full_precision)
        mask = None
        if qkv.windows is not None:
            batch_size = len(qkv.q)
            qkv = qkv.apply(qkv.windows.fold)
            mask = qkv.windows.mask.repeat(batch_size, 1, 1).unsqueeze(1)
        q, k, v = qkv[:3]
        if target == 'output':
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            if qkv.windows is not None:
                out = qkv.windows.unfold(out)
        else:
            out = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
            if mask is not None:
                never = 0.0 if target == 'score' else -torch.inf
                out = out.masked_fill(~mask, never)
            if target == 'prob':
                out = out.softmax(-1)
        return out.mean(1) if average_heads else out


def split_heads(
    feature: torch.Tensor, head_dims: int
) -> dict[str, torch.Tensor]:
    """Split a map ``(N, 3 * heads * d, H, W)`` into q, k and v.

    Returns:
        dict[str, Tensor]: ``q``, ``k`` and ``v``, ``(N, heads, H * W, d)``.
    """
    qkv = feature.flatten(2).unflatten(1, (3, -1, head_dims))
    return dict(zip('qkv', qkv.transpose(3, 4).unbind(1), strict=True))


def split_rows(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    """``(N, L, 3 * heads * d)`` to ``(3, N, heads, L, d)``."""
    return qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)


def check_qkv(qkv: QKV, name: str, whose: str) -> None:
    """Check that an input is a record of queries, keys and values.

    Raises:
        ValueError: It is something else. The message names the input.
    """
    if not isinstance(qkv, QKV):
        raise ValueError(
            f"the input `{name}` must be the {whose}'s record of a recorder "
            f"dict(type='mmcakd.QKV'), got {type(qkv).__name__}"
        )
