"""A plain checkpoint at the end of a distillation."""

from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmcakd.registry import HOOKS
from mmcakd.utils import export_student


@HOOKS.register_module()
class ExportStudentHook(Hook):
    """Write the student as a plain MMPretrain checkpoint after training.

    It becomes ``student.pth`` in the work directory, with its config
    ``student.py``.

    The last checkpoint is the state after training. Where training ends
    between two checkpoints, stopped by an ``EarlyStoppingHook`` for example,
    one more is saved.

    Args:
        which (str): Which checkpoint it is taken from: 'last'; 'best' by the
            metric of ``save_best``; or, of several of these, the metric, such
            as 'accuracy/top1'. Defaults to 'last'.
        ema (bool, optional): Whether to take averaged weights; None takes
            them where there are any. Defaults to None.
    """

    # After the CheckpointHook.
    priority = 'LOWEST'

    def __init__(
        self,
        which: str = 'last',
        ema: bool | None = None,
    ) -> None:
        self.which = which
        self.ema = ema

    def before_train(self, runner: Runner) -> None:
        """Refuse at once what would only fail after training."""
        hooks = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
        if not hooks:
            raise ValueError(
                'ExportStudentHook reads what the CheckpointHook saves: keep '
                'default_hooks.checkpoint'
            )
        for hook in hooks:
            if '://' in str(hook.out_dir):
                raise ValueError(
                    'ExportStudentHook reads checkpoints from a disk, but '
                    f'they go to {hook.out_dir}: remove the hook and export '
                    'the student from a copy'
                )
        if self.which != 'last':
            self._check_best(runner, [h for h in hooks if h.save_best])

    def _check_best(self, runner: Runner, hooks: list[CheckpointHook]) -> None:
        asked = f'ExportStudentHook(which={self.which!r})'
        if len(hooks) != 1:
            raise ValueError(
                f'{asked} needs default_hooks.checkpoint.save_best, and no '
                'other CheckpointHook with it'
            )
        metrics = hooks[0].save_best
        if self.which == 'best' and len(metrics) > 1:
            raise ValueError(
                f'{asked}: save_best watches {", ".join(metrics)}; say which '
                f'of them, e.g. which={metrics[0]!r}'
            )
        if self.which != 'best' and self.which not in metrics:
            raise ValueError(
                f'{asked}: save_best watches {", ".join(metrics)} alone; '
                "take one of them, 'best' or 'last'"
            )
        loop = runner.train_loop
        end = (
            loop.max_epochs
            if isinstance(loop, EpochBasedTrainLoop)
            else loop.max_iters
        )
        if runner.val_loop is None or loop.val_begin > end:
            raise ValueError(
                f'{asked} needs validation during training: set val_cfg, '
                'val_dataloader and val_evaluator, and a train_cfg.val_begin '
                'within the training'
            )

    def after_train(self, runner: Runner) -> None:
        """Export the student, from a checkpoint of now if it is the last."""
        hooks = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
        steps = [runner.epoch if h.by_epoch else runner.iter for h in hooks]
        if not any(
            Path(hook.last_ckpt or '').name == hook.filename_tmpl.format(step)
            for hook, step in zip(hooks, steps, strict=True)
        ):
            meta = dict(epoch=runner.epoch, iter=runner.iter)
            hooks[0]._save_checkpoint_with_step(runner, steps[0], meta=meta)
        self._export(runner)

    @master_only
    def _export(self, runner: Runner) -> None:
        # Of the run itself, whose types may be of modules that no file names.
        path = export_student(
            runner.work_dir, cfg=runner.cfg, ema=self.ema, which=self.which
        )
        runner.logger.info(f'The student was written to {path}')
