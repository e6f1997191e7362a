"""Queries, keys and values of a self-attention block."""

from functools import partial

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

from ..attention import QKV, Grid, find_windows, split_rows
from ..stages import find_backbone, find_family, read_grid

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
        qkv = split_rows(outputs, num_heads)
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
            *split_rows(outputs, attention.w_msa.num_heads),
            self._grid,
            windows,
        )
        self._data_buffer.append(qkv.apply(windows.unfold) if windows else qkv)
