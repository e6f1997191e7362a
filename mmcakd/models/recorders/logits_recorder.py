"""The logits of a classifier."""

from typing import Any

from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder
from torch import nn

from mmcakd.registry import TASK_UTILS


@TASK_UTILS.register_module()
class LogitsRecorder(ModuleOutputsRecorder):
    """Record the class scores of a classifier, whatever it is made of.

    In configs its type is ``mmcakd.Logits``. The record is ``(N, C)``: the
    output of ``head`` for MMPretrain's classifiers, of the wrapped network
    for ``TimmClassifier``, ``HuggingFaceClassifier`` and
    ``mmcakd.TorchvisionClassifier``.

    Raises:
        ValueError: The model has neither a head nor a wrapped network.
    """

    def __init__(self) -> None:
        super().__init__(source='logits')

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Hook the module that ends with class scores."""
        for name in ('head', 'model'):
            module = getattr(model, name, None)
            if isinstance(module, nn.Module):
                module.register_forward_hook(self.forward_hook)
                return
        raise ValueError(
            f'{type(model).__name__} has no `head` whose output are the '
            "logits; record them with dict(type='ModuleOutputs', "
            "source='path.of.the.last.layer')"
        )

    def forward_hook(
        self, module: nn.Module, inputs: tuple, outputs: Any
    ) -> None:
        """Record the scores; Hugging Face returns them as an attribute."""
        super().forward_hook(
            module, inputs, getattr(outputs, 'logits', outputs)
        )
