"""A plain checkpoint at the end of a distillation."""

from typing import Literal

from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook

from mmcakd.registry import HOOKS
from mmcakd.utils import export_student


@HOOKS.register_module()
class ExportStudentHook(Hook):
    """Write the student as a plain MMPretrain checkpoint after training.

    It becomes ``student.pth`` in the work directory, with its config
    ``student.py``.

    Args:
        which (str): Which checkpoint it is taken from: 'last', or 'best' by
            the metric of ``save_best``. Defaults to 'last'.
        ema (bool, optional): Whether to take averaged weights; None takes
            them where there are any. Defaults to None.
    """

    # After the CheckpointHook.
    priority = 'LOWEST'

    def __init__(
        self,
        which: Literal['last', 'best'] = 'last',
        ema: bool | None = None,
    ) -> None:
        self.which = which
        self.ema = ema

    def before_train(self, runner) -> None:
        """Refuse at once what would only fail after training."""
        hooks = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
        if not hooks:
            raise ValueError(
                'ExportStudentHook reads what the CheckpointHook saves: keep '
                'default_hooks.checkpoint'
            )
        if self.which == 'best' and not any(h.save_best for h in hooks):
            raise ValueError(
                "ExportStudentHook(which='best') needs "
                'default_hooks.checkpoint.save_best'
            )

    @master_only
    def after_train(self, runner) -> None:
        path = export_student(runner.work_dir, ema=self.ema, which=self.which)
        runner.logger.info(f'The student was written to {path}')
