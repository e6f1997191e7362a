"""Every stage of a student before every stage of the teacher."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from mmcakd.registry import MODELS

from ..functional import check_map
from .base import BaseConnector
from .utils import check_stage_numbers, check_stages


@MODELS.register_module()
class RouterConnector(BaseConnector):
    """Project every student stage to the shape of every teacher stage.

    Which of these pairs count is learned in
    :class:`mmcakd.models.losses.RouterLoss`. Ours, after the abstract of the
    IJCV extension of CAKD.

    .. code-block:: python

        connectors = dict(
            router=dict(
                type='mmcakd.RouterConnector',
                inputs=dict(
                    student=dict(recorder='stages', from_student=True),
                    teacher=dict(recorder='stages', from_student=False),
                ),
            )
        )
        distill_losses = dict(
            loss_router=dict(type='mmcakd.RouterLoss', anneal_iters=10000)
        )
        loss_forward_mappings = dict(
            loss_router=dict(
                student=dict(connector='router', connector_idx='student'),
                teacher=dict(connector='router', connector_idx='teacher'),
            )
        )

    Args:
        teacher_stages (Sequence[int]): Stages, 1 to 4, of the teacher.
            Defaults to all four.
        student_stages (Sequence[int]): Stages of the student. Defaults to
            all four.
        projector (dict, optional): Config of the connectors, one a pair, from
            a map to the grid and width of another. Defaults to
            ``dict(type='mmcakd.FitNetConnector')``; ``mmcakd.GLPConnector``
            is large on the fine grids of early stages.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: Stages outside of 1 to 4, or inputs that are not four
            maps.

    Examples:
        >>> import torch
        >>> from mmcakd.models.connectors import RouterConnector
        >>> router = RouterConnector(teacher_stages=(2, 4))
        >>> cnn = [torch.rand(2, 8 * 2**i, 16 // 2**i, 16 // 2**i)
        ...        for i in range(4)]
        >>> vit = [torch.rand(2, 48, 4, 4) for _ in range(4)]
        >>> router.prepare(dict(student=vit, teacher=cnn))
        >>> out = router(vit, cnn)
        >>> [[tuple(pair.shape) for pair in row] for row in out['student']][1]
        [(2, 64, 2, 2), (2, 64, 2, 2), (2, 64, 2, 2), (2, 64, 2, 2)]
    """

    def __init__(
        self,
        teacher_stages: Sequence[int] = (1, 2, 3, 4),
        student_stages: Sequence[int] = (1, 2, 3, 4),
        projector: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.teacher_stages = check_stage_numbers(
            teacher_stages, 'teacher_stages'
        )
        self.student_stages = check_stage_numbers(
            student_stages, 'student_stages'
        )
        self.projector = projector or dict(type='mmcakd.FitNetConnector')
        self.projectors = nn.ModuleList()

    def prepare(
        self,
        inputs: dict[str, Sequence[torch.Tensor]],
        like: None = None,
    ) -> None:
        """Build a projector for each pair."""
        if len(self.projectors):
            return
        students, teachers = self._pick(**inputs)
        for teacher in teachers:
            row = nn.ModuleList()
            for student in students:
                projector = MODELS.build(copy.deepcopy(self.projector))
                projector.prepare(dict(feature=student), teacher)
                row.append(projector)
            self.projectors.append(row)

    def forward(
        self,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
    ) -> dict[str, tuple]:
        """Project each student stage once for each teacher stage.

        Args:
            student (Sequence[Tensor]): All stages of the student.
            teacher (Sequence[Tensor]): All stages of the teacher.

        Returns:
            dict[str, tuple]: ``student``: for each teacher stage, the
            projections of all student stages; ``teacher``: its stages.
        """
        if not len(self.projectors):
            raise ValueError(
                'this router has no projectors yet: let a CrossArchDistill '
                'prepare it'
            )
        students, teachers = self._pick(student, teacher)
        projected = tuple(
            tuple(
                projector(feature)
                for projector, feature in zip(row, students, strict=True)
            )
            for row in self.projectors
        )
        return dict(student=projected, teacher=teachers)

    def _pick(self, student: Sequence, teacher: Sequence) -> tuple:
        """Pick the stages, and check that they are maps."""
        sides = dict(
            student=(student, self.student_stages),
            teacher=(teacher, self.teacher_stages),
        )
        for name, (maps, stages) in sides.items():
            check_stages(maps, name, stages, f'{name}_stages')
            for feature in maps:
                check_map(feature, name)
        return tuple(
            tuple(maps[stage - 1] for stage in stages)
            for maps, stages in sides.values()
        )
