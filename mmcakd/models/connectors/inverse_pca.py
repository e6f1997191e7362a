"""Partially cross attention the other way: a CNN teaches a transformer."""

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import Fraction, PositiveInt
from mmcakd.registry import MODELS

from ..attention import QKV, Attended, Target, check_qkv, split_heads
from ..functional import check_map, resize_map
from ..stages import to_tokens
from .pca import PartialAttention, Unit


@MODELS.register_module()
class InversePCAConnector(PartialAttention):
    r"""Teach a transformer's attention the affinities of a CNN's map.

    Ours, after the abstract of the IJCV extension of CAKD, which names an
    inverse projector for CNN teachers and ViT students but has no formula.

    A convolutional teacher attends to nothing, but its map :math:`F` tells
    which places look alike. Attention computed over the map itself,

    .. math::
        Q_T = K_T = V_T = LN(F), \qquad
        A_T = softmax \Big( \frac{Q_T K_T^T}{\sqrt d} \Big) \, V_T

    in heads of width ``d``, is the target; the normalisation over channels,
    without parameters, keeps its scores in the range of :math:`\sqrt d`
    whatever the scale of the map. On the other side stand the student's own
    queries, keys and values of a block, brought to the teacher's grid and by
    three linear layers to its width, and partially replaced by the teacher's
    as in :class:`PCAConnector`.

    What is trained is on the student's side alone: the block and the linear
    layers. Were projections of the teacher's map trained instead, they could
    follow whatever the student does, or shrink with it to zero, and the loss
    would vanish without teaching anything. Here the target is fixed, so a
    small loss means that the student's attention holds the teacher's map up
    to a linear layer, which is what every regression of features asks.

    .. code-block:: python

        student_recorders = dict(qkv=dict(type='mmcakd.QKV'))
        teacher_recorders = dict(stages=dict(type='mmcakd.StageOutputs'))
        connectors = dict(
            ipca=dict(
                type='mmcakd.InversePCAConnector',
                inputs=dict(
                    qkv=dict(recorder='qkv', from_student=True),
                    feature=dict(
                        recorder='stages', from_student=False, data_idx=3
                    ),
                ),
            )
        )
        distill_losses = dict(loss_ipca=dict(type='mmcakd.PCALoss'))
        loss_forward_mappings = dict(
            loss_ipca=dict(
                student=dict(connector='ipca', connector_idx='student'),
                teacher=dict(connector='ipca', connector_idx='teacher'),
            )
        )

    Args:
        head_dims (int, optional): ``d``, which divides the channels of the
            teacher's map. Defaults to the width of the student's heads.
        replace (str): See :class:`PCAConnector`.
        replace_prob (float): See :class:`PCAConnector`.
        attn_target (str): See :class:`PCAConnector`.
        average_heads (bool): See :class:`PCAConnector`.
        in_channels (int, optional): Width of the student's block. Read from
            the student if None.
        out_channels (int, optional): Width of the teacher's map. Read from
            the teacher if None.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: An unknown option, heads whose width does not divide the
            channels, inputs that are not a record of ``mmcakd.QKV`` and a
            map, or a record that has no gradient.

    Examples:
        >>> import torch
        >>> from mmcakd.models.connectors import InversePCAConnector
        >>> from mmcakd.models.recorders import QKV
        >>> ipca = InversePCAConnector(32, in_channels=48, out_channels=96)
        >>> q, k, v = torch.rand(3, 2, 3, 16, 16, requires_grad=True)
        >>> out = ipca(QKV(q, k, v, (4, 4)), torch.rand(2, 96, 7, 7))
        >>> out['student'].attention.shape, out['teacher'].attention.shape
        (torch.Size([2, 3, 49, 32]), torch.Size([2, 3, 49, 32]))
    """

    def __init__(
        self,
        head_dims: PositiveInt | None = None,
        replace: Unit = 'element',
        replace_prob: Fraction = 0.5,
        attn_target: Target = 'output',
        average_heads: bool = False,
        in_channels: PositiveInt | None = None,
        out_channels: PositiveInt | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            replace, replace_prob, attn_target, average_heads, init_cfg
        )
        self.head_dims = head_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.project: nn.Conv2d | None = None
        if None not in (head_dims, in_channels, out_channels):
            self._build()

    def prepare(
        self, inputs: dict[str, torch.Tensor | QKV], like: None = None
    ) -> None:
        """Read the sizes that the config left open, and build."""
        if self.project is not None:
            return
        feature, qkv = inputs['feature'], inputs['qkv']
        check_map(feature, 'feature')
        check_qkv(qkv, 'qkv', 'student')
        _, heads, _, dims = qkv.q.shape
        self.head_dims = self.head_dims or dims
        self.in_channels = self.in_channels or heads * dims
        self.out_channels = self.out_channels or feature.shape[1]
        self._build()

    def _build(self) -> None:
        if self.out_channels % self.head_dims:
            raise ValueError(
                f'heads of {self.head_dims} channels do not divide the '
                f"{self.out_channels} channels of the teacher's map; set "
                'head_dims to a divisor'
            )
        # A linear layer each for queries, keys and values.
        self.project = nn.Conv2d(
            3 * self.in_channels, 3 * self.out_channels, 1, groups=3
        )

    def forward(self, qkv: QKV, feature: torch.Tensor) -> dict[str, Attended]:
        """Attend on both sides.

        Args:
            qkv (QKV): The student's record, ``in_channels`` wide in all
                heads together. Its windows do not count: the teacher's map
                has none.
            feature (Tensor): The teacher's map, ``(N, out_channels, H, W)``.

        Returns:
            dict[str, Attended]: ``student`` and ``teacher``.
        """
        if self.project is None:
            raise ValueError(
                'this projector has no sizes yet: set head_dims, in_channels '
                'and out_channels, or let a CrossArchDistill prepare it'
            )
        check_qkv(qkv, 'qkv', 'student')
        check_map(feature, 'feature')
        if (
            self.training
            and torch.is_grad_enabled()
            and not qkv.q.requires_grad
        ):
            raise ValueError(
                "the student's queries, keys and values have no gradient, so "
                'nothing would be learned: switch off activation '
                'checkpointing (with_cp) in the block that is recorded'
            )
        grid = tuple(feature.shape[2:])
        maps = [
            x.transpose(2, 3).flatten(1, 2).unflatten(2, qkv.grid)
            for x in qkv[:3]
        ]
        projected = self.project(resize_map(torch.cat(maps, 1), grid))
        student = QKV(**split_heads(projected, self.head_dims), grid=grid)
        return self.compare(student, self._read_teacher(feature, grid))

    def _read_teacher(self, feature: torch.Tensor, grid) -> QKV:
        tokens = F.layer_norm(to_tokens(feature), feature.shape[1:2])
        heads = tokens.unflatten(2, (-1, self.head_dims)).transpose(1, 2)
        return QKV(heads, heads, heads, grid)
