"""Partially cross attention projector of CAKD."""

from typing import Literal

import torch
from torch import nn

from mmcakd.arguments import Fraction, PositiveInt
from mmcakd.registry import MODELS

from ..attention import (
    QKV,
    Attended,
    Target,
    attend,
    check_qkv,
    split_heads,
)
from ..functional import check_map, resize_map
from .base import BaseConnector

#: What is replaced at once.
Unit = Literal['element', 'token', 'matrix']


class PartialAttention(BaseConnector):
    """What the projectors of attention, forward and inverse, share.

    Args:
        replace (str): What is replaced at once: an ``'element'``, a
            ``'token'`` (in all heads), or the whole ``'matrix'`` of an image.
            Defaults to ``'element'``.
        replace_prob (float): How often, in training. Defaults to 0.5.
        attn_target (str): See :func:`attend`. Defaults to ``'output'``.
        average_heads (bool): See :func:`attend`. Defaults to False.
        init_cfg (dict, optional): Initialization config.
    """

    def __init__(
        self,
        replace: Unit = 'element',
        replace_prob: Fraction = 0.5,
        attn_target: Target = 'output',
        average_heads: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.replace = replace
        self.replace_prob = replace_prob
        self.attn_target = attn_target
        self.average_heads = average_heads

    def compare(self, student: QKV, teacher: QKV) -> dict[str, Attended]:
        """Attend on both sides, on the student's with partial replacement.

        Returns:
            dict[str, Attended]: ``student`` and ``teacher``. The student's
            value is the one before replacement.
        """
        teacher = teacher.apply(torch.Tensor.detach)
        if self.replace_prob and student.q.shape != teacher.q.shape:
            raise ValueError(
                f"the student's {tuple(student.q.shape)} (N, heads, L, d) "
                f"cannot be replaced by the teacher's "
                f'{tuple(teacher.q.shape)}; leave num_heads and head_dims to '
                'the teacher, or set replace_prob=0'
            )
        mixed = student
        if self.training and self.replace_prob:
            mixed = student._replace(
                q=self._mix(student.q, teacher.q),
                k=self._mix(student.k, teacher.k),
                v=self._mix(student.v, teacher.v),
            )
        return dict(
            student=self._attended(mixed, student.v),
            teacher=self._attended(teacher, teacher.v),
        )

    def _mix(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> torch.Tensor:
        images, _, tokens, _ = shape = student.shape
        if self.replace != 'element':
            tokens = tokens if self.replace == 'token' else 1
            shape = (images, 1, tokens, 1)
        chance = torch.rand(shape, device=student.device)
        return torch.where(chance < self.replace_prob, teacher, student)

    def _attended(self, qkv: QKV, value: torch.Tensor) -> Attended:
        if qkv.windows is not None:
            value = qkv.windows.fold(value)
        attention = attend(qkv, self.attn_target, self.average_heads)
        return Attended(attention, value)


@MODELS.register_module()
class PCAConnector(PartialAttention):
    r"""Partially cross attention: see a map as the teacher's attention does.

    Three 3x3 convolutions turn the student's map, brought to the teacher's
    grid, into queries, keys and values :math:`Q_S, K_S, V_S` in the heads of
    a block of the teacher. In training, elements of them are replaced by the
    teacher's with a probability of a half, by a fresh mask for each matrix:

    .. math::
        g(M)_{ij} = M_{T,ij} \text{ if } u_{ij} < p \text{ else } M_{S,ij},
        \qquad u_{ij} \sim U(0, 1)

    .. math::
        A_S = softmax \Big( \frac{g(Q_S) \, g(K_S)^T}{\sqrt d} \Big)
        \, g(V_S), \qquad
        A_T = softmax \Big( \frac{Q_T K_T^T}{\sqrt d} \Big) \, V_T

    in each head, of width ``d``. In eval mode nothing is replaced. With the
    windows of a Swin, attention and the Gram matrices of the values stay
    inside them. No gradient reaches the teacher.

    Source: `Cross-Architecture Knowledge Distillation
    <https://arxiv.org/abs/2207.05273>`_, partially cross attention projector.
    Heads, windows, and other units of replacement than elements are ours; so
    is the resizing, which averages down and interpolates up.

    In a config, next to ``mmcakd.PCALoss``:

    .. code-block:: python

        distiller = dict(
            student_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
            teacher_recorders=dict(qkv=dict(type='mmcakd.QKV')),
            connectors=dict(
                pca=dict(
                    type='mmcakd.PCAConnector',
                    inputs=dict(
                        feature=dict(
                            recorder='stages', from_student=True, data_idx=2
                        ),
                        qkv=dict(recorder='qkv', from_student=False),
                    ),
                )
            ),
            distill_losses=dict(loss_pca=dict(type='mmcakd.PCALoss')),
            loss_forward_mappings=dict(
                loss_pca=dict(
                    student=dict(connector='pca', connector_idx='student'),
                    teacher=dict(connector='pca', connector_idx='teacher'),
                )
            ),
        )

    The public code of the paper does something else:

    .. code-block:: python

        pca = dict(
            type='mmcakd.PCAConnector',
            qkv='linear',
            num_heads=16,
            head_dims=64,
            replace_prob=0.0,
            attn_target='score',
            average_heads=True,
        )
        loss_pca = dict(
            type='mmcakd.PCALoss',
            attn_weight=0.2,
            gram_weight=0.05,
            average_heads=True,
            scale_teacher_gram=False,
        )

    Args:
        qkv (str): ``'conv'`` for 3x3 convolutions with bias, ``'linear'`` for
            linear layers without. Defaults to ``'conv'``.
        replace (str): What is replaced at once: an ``'element'``, a
            ``'token'`` (in all heads), or the whole ``'matrix'`` of an image.
            Defaults to ``'element'``.
        replace_prob (float): Probability of a replacement. Defaults to 0.5.
        attn_target (str): What is compared: the ``'output'`` of attention,
            its probabilities (``'prob'``), or the ``'score'`` before the
            softmax. Defaults to ``'output'``.
        average_heads (bool): Whether the mean over the heads is compared.
            Defaults to False.
        in_channels (int, optional): Read from the student if None.
        num_heads (int, optional): Read from the teacher if None.
        head_dims (int, optional): ``d``. Read from the teacher if None.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: An unknown option, a probability outside of 0 to 1,
            inputs that are not a map and a record of ``mmcakd.QKV``, or
            replacement between unequal heads.

    Examples:
        >>> import torch
        >>> from mmcakd.models.connectors import PCAConnector
        >>> from mmcakd.models.recorders import QKV
        >>> pca = PCAConnector(in_channels=64, num_heads=3, head_dims=32)
        >>> qkv = QKV(*torch.rand(3, 2, 3, 49, 32), grid=(7, 7))
        >>> out = pca(torch.rand(2, 64, 14, 14), qkv)
        >>> out['student'].attention.shape
        torch.Size([2, 3, 49, 32])
        >>> torch.equal(out['teacher'].value, qkv.v)
        True
    """

    def __init__(
        self,
        qkv: Literal['conv', 'linear'] = 'conv',
        replace: Unit = 'element',
        replace_prob: Fraction = 0.5,
        attn_target: Target = 'output',
        average_heads: bool = False,
        in_channels: PositiveInt | None = None,
        num_heads: PositiveInt | None = None,
        head_dims: PositiveInt | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            replace, replace_prob, attn_target, average_heads, init_cfg
        )
        self.qkv = qkv
        self.in_channels = in_channels
        self.num_heads = num_heads
        self.head_dims = head_dims
        self.project: nn.Conv2d | None = None
        if None not in (in_channels, num_heads, head_dims):
            self._build()

    def prepare(
        self, inputs: dict[str, torch.Tensor | QKV], like: None = None
    ) -> None:
        """Read the sizes that the config left open, and build."""
        if self.project is not None:
            return
        feature, qkv = inputs['feature'], inputs['qkv']
        check_map(feature, 'feature')
        check_qkv(qkv, 'qkv', 'teacher')
        self.in_channels = self.in_channels or feature.shape[1]
        self.num_heads = self.num_heads or qkv.q.shape[1]
        self.head_dims = self.head_dims or qkv.q.shape[3]
        self._build()

    def _build(self) -> None:
        # Queries, keys and values by one convolution, which is faster.
        width = 3 * self.num_heads * self.head_dims
        kind = dict(
            conv=dict(kernel_size=3, padding=1),
            linear=dict(kernel_size=1, bias=False),
        )
        self.project = nn.Conv2d(self.in_channels, width, **kind[self.qkv])

    def forward(self, feature: torch.Tensor, qkv: QKV) -> dict[str, Attended]:
        """Attend on both sides.

        Args:
            feature (Tensor): The student's map, ``(N, in_channels, h, w)``.
            qkv (QKV): The teacher's record.

        Returns:
            dict[str, Attended]: ``student`` and ``teacher``.
        """
        if self.project is None:
            raise ValueError(
                'this projector has no sizes yet: set in_channels, num_heads '
                'and head_dims, or let a CrossArchDistill prepare it'
            )
        check_map(feature, 'feature')
        check_qkv(qkv, 'qkv', 'teacher')
        projected = self.project(resize_map(feature, qkv.grid))
        student = qkv._replace(**split_heads(projected, self.head_dims))
        return self.compare(student, qkv)
