"""How good an assistant is, next to the student."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from mmpretrain.evaluation import Accuracy

from mmcakd.arguments import PositiveInt
from mmcakd.models.connectors import AssistantConnector
from mmcakd.registry import HOOKS

from .utils import unwrap


@HOOKS.register_module()
class AssistantAccuracyHook(Hook):
    """Evaluate an assistant on the validation set.

    Its accuracy is logged with the student's, as ``assistant/accuracy/...``.
    The student's forward is the one of the validation; the teacher's is run
    in addition.

    Args:
        connector (str): Name of the assistant in the distiller's connectors.
            Defaults to ``'assistant'``.
        topk (Sequence[int]): Defaults to ``(1, )``.

    Raises:
        ValueError: The model has no distiller with such an assistant.

    Examples:
        >>> default_hooks = dict(
        ...     assistant=dict(type='mmcakd.AssistantAccuracyHook'))
    """

    def __init__(
        self, connector: str = 'assistant', topk: Sequence[PositiveInt] = (1,)
    ) -> None:
        self.connector = connector
        self.metric = Accuracy(topk=tuple(topk))
        self._watching = ExitStack()

    def before_run(self, runner: Runner) -> None:
        """Look for the assistant before anything is trained."""
        distiller = getattr(unwrap(runner.model), 'distiller', None)
        assistants = [
            name
            for name, connector in getattr(distiller, 'connectors', {}).items()
            if isinstance(connector, AssistantConnector)
        ]
        if self.connector not in assistants:
            raise ValueError(
                'AssistantAccuracyHook evaluates the connector '
                f'{self.connector!r}, but the assistants of the distiller are '
                f"{assistants}; set the hook's `connector`, or remove the hook"
            )

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Watch the student's own forward: its images and its stages."""
        model = unwrap(runner.model)

        def keep(student, inputs) -> None:
            (self._images, *_) = inputs

        # Where the iteration before has failed.
        self._watching.close()
        handle = model.student.register_forward_pre_hook(keep)
        self._watching.callback(handle.remove)
        self._watching.enter_context(model.distiller.student_recorders)

    @torch.no_grad()
    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Let the assistant classify the batch."""
        self._watching.close()
        model = unwrap(runner.model)
        # The precision of the student's features.
        with autocast(enabled=runner.val_loop.fp16):
            with model.distiller.teacher_recorders:
                model.teacher(self._images)
            output = model.distiller.run_connector(self.connector)
        logits = output['logits']
        del self._images
        scores = logits.float().softmax(1)
        self.metric.process(
            data_batch,
            [
                dict(pred_score=score, gt_label=sample.gt_label)
                for score, sample in zip(scores, outputs, strict=True)
            ],
        )

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Put the accuracy beside the student's."""
        size = len(runner.val_dataloader.dataset)
        for key, value in self.metric.evaluate(size).items():
            metrics[f'assistant/{key}'] = value
            runner.message_hub.update_scalar(f'val/assistant/{key}', value)
