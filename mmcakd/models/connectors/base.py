"""What a connector of mmcakd is."""

import torch
from mmengine.model import BaseModule
from torch import nn

from ..teachers import Teacher


class BaseConnector(BaseModule):
    """A module between the records and the losses.

    A connector takes as many inputs as its ``forward`` has arguments. Before
    training starts the distiller calls :meth:`attach`, runs both models on an
    example batch, and calls :meth:`prepare` with what came of it.
    """

    def attach(self, student: nn.Module, teacher: Teacher) -> None:
        """Get hold of the two models, e.g. to hook them.

        Args:
            student (nn.Module): The student.
            teacher (Teacher): The teacher; keep it out of ``_modules``.
        """

    def prepare(
        self, inputs: dict[str, torch.Tensor], like: torch.Tensor | None
    ) -> None:
        """Build what depends on the sizes of the features.

        Args:
            inputs (dict[str, Tensor]): Examples of ``forward``'s arguments.
            like (Tensor, optional): Example of the record that the config
                names in ``shape_like``.
        """
