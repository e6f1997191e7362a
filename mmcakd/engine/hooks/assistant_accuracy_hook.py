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
from mmcakd.models.distillers import Step
from mmcakd.models.distillers.references import STUDENT
from mmcakd.models.teachers import Teacher
from mmcakd.models.teachers.teacher import DEFAULT_INPUT
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
        self._step: Step | None = None

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
        for name, teacher in self._teachers(runner).items():
            if teacher.inputs != DEFAULT_INPUT:
                raise ValueError(
                    f'AssistantAccuracyHook: {name} reads the input '
                    f'{teacher.inputs!r}, which validation does not have; '
                    'remove the hook'
                )

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Watch the student's own forward: its images and its stages."""
        model = unwrap(runner.model)
        # Where the iteration before has failed.
        self._forget()
        self._step = model.distiller.step({}, None)

        def keep(student, inputs) -> None:
            self._step.inputs[DEFAULT_INPUT] = inputs[0]

        handle = model.student.register_forward_pre_hook(keep)
        self._watching.callback(handle.remove)
        self._watching.enter_context(self._step.recording(STUDENT))

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
        distiller = unwrap(runner.model).distiller
        # The precision of the student's features.
        try:
            with autocast(enabled=runner.val_loop.fp16):
                for name, teacher in self._teachers(runner).items():
                    with self._step.recording(name):
                        teacher(self._step.inputs[DEFAULT_INPUT])
                output = distiller.run_connector(self.connector, self._step)
        finally:
            self._forget()
        scores = output['logits'].float().softmax(1)
        self.metric.process(
            data_batch,
            [
                dict(pred_score=score, gt_label=sample.gt_label)
                for score, sample in zip(scores, outputs, strict=True)
            ],
        )

    def _teachers(self, runner: Runner) -> dict[str, Teacher]:
        """The teachers that the assistant comes from, by name."""
        model = unwrap(runner.model)
        names = model.distiller.graph.models_behind(self.connector)
        return {
            name: teacher
            for name, teacher in model.live_teachers.items()
            if name in names
        }

    def _forget(self) -> None:
        """Drop the step, also of an iteration that failed."""
        self._watching.close()
        if self._step is not None:
            self._step.drop()
            self._step = None

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Put the accuracy beside the student's."""
        size = len(runner.val_dataloader.dataset)
        for key, value in self.metric.evaluate(size).items():
            metrics[f'assistant/{key}'] = value
            runner.message_hub.update_scalar(f'val/assistant/{key}', value)
