"""The logits of a classifier."""

from functools import partial
from inspect import signature
from typing import Any

import torch
from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder
from torch import nn

from mmcakd.registry import TASK_UTILS

from ..stages import frozen_statistics


@TASK_UTILS.register_module()
class LogitsRecorder(ModuleOutputsRecorder):
    """Record the class scores of a classifier, whatever it is made of.

    In configs its type is ``mmcakd.Logits``. The record is ``(N, C)``: the
    output of ``head`` for MMPretrain's classifiers, of the wrapped network
    for ``TimmClassifier``, ``HuggingFaceClassifier`` and
    ``mmcakd.TorchvisionClassifier``.

    They are the plain scores, those of ``mode='tensor'``, also where the loss
    of the head works on others: of a head that takes targets, such as
    ArcFace's, which subtracts a margin from the score of the label, and of a
    ``MultiTaskHead``, which gives each task the images that have it.

    Of a model with several heads (``MultiTaskHead``, ``ConformerHead``), the
    ``data_idx`` of a reference picks the logits by the name of the task or by
    their place.

    Raises:
        ValueError: The model has neither a head nor a wrapped network; its
            head needs targets; or it has several heads, of which a reference
            picks none or one that does not exist.

    Examples:
        >>> by_name = dict(
        ...     recorder='logits', from_student=True, data_idx='colour')
        >>> by_place = dict(
        ...     recorder='logits', from_student=False, data_idx=0)
    """

    def __init__(self) -> None:
        super().__init__(source='logits')
        #: Heads that have not been called yet, with the features for them.
        self._waiting: list[tuple[nn.Module, Any]] = []

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Hook the module that ends with class scores."""
        head = getattr(model, 'head', None)
        if not isinstance(head, nn.Module):
            network = getattr(model, 'model', None)
            if not isinstance(network, nn.Module):
                raise ValueError(
                    f'{type(model).__name__} has no `head` whose output are '
                    "the logits; record them with dict(type='ModuleOutputs', "
                    "source='path.of.the.last.layer')"
                )
            network.register_forward_hook(self.forward_hook)
            return
        self._check_head(head)
        head.register_forward_hook(self._record, with_kwargs=True)
        for name in ('neck', 'backbone'):
            module = getattr(model, name, None)
            if isinstance(module, nn.Module):
                # Not kept here: a copy of the recorder would copy it.
                module.register_forward_hook(partial(self._remember, head))
                return

    @staticmethod
    def _check_head(head: nn.Module) -> None:
        _, *others = signature(head.forward).parameters.values()
        needed = [
            parameter.name
            for parameter in others
            if parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        if needed:
            raise ValueError(
                f'a {type(head).__name__} gives no plain scores, since it '
                f'needs {needed} besides the features; record others with '
                "dict(type='ModuleOutputs', source='path.of.a.layer')"
            )

    def forward_hook(
        self, module: nn.Module, inputs: tuple, outputs: Any
    ) -> None:
        """Record the scores; Hugging Face returns them as an attribute."""
        super().forward_hook(
            module, inputs, getattr(outputs, 'logits', outputs)
        )

    def _remember(self, head: nn.Module, module, inputs, features) -> None:
        if self.recording:
            self._waiting.append((head, features))

    def _record(self, head: nn.Module, args, kwargs, outputs) -> None:
        if not self.recording:
            return
        bound = signature(head.forward).bind(*args, **kwargs).arguments
        features, *others = bound.values()
        if any(other is not None for other in others):
            outputs = _plain_scores(head, features)
        self._waiting.clear()
        self.forward_hook(head, args, outputs)

    def get_record_data(
        self, record_idx: int = 0, data_idx: int | str | None = None
    ) -> torch.Tensor:
        """Get logits ``(N, C)``, of one of several heads by ``data_idx``."""
        while self._waiting:
            scores = _plain_scores(*self._waiting.pop(0))
            self._data_buffer.append(scores)
        scores = super().get_record_data(record_idx)
        if isinstance(scores, torch.Tensor):
            if data_idx is not None:
                raise ValueError(
                    f'there are logits of one head alone, but data_idx='
                    f'{data_idx!r} picks one of several; remove data_idx'
                )
            return scores
        if not isinstance(scores, dict):
            scores = dict(enumerate(scores))
        names, scores = list(scores), list(scores.values())
        if data_idx in names:
            return scores[names.index(data_idx)]
        if isinstance(data_idx, int) and -len(names) <= data_idx < len(names):
            return scores[data_idx]
        if data_idx is None and len(names) == 1:
            return scores[0]
        asked = '' if data_idx is None else f', but not {data_idx!r}'
        raise ValueError(
            f'there are logits of several heads, {names}{asked}: pick one of '
            f'them in the reference, e.g. by data_idx={names[0]!r}'
        )

    def reset_data_buffer(self) -> None:
        """Forget what was recorded."""
        super().reset_data_buffer()
        self._waiting.clear()


def _plain_scores(head: nn.Module, features: Any) -> Any:
    """Ask a head for the scores without targets."""
    with frozen_statistics(head):
        return head.forward(features)
