"""Losses and gradients that are not finite stop a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from mmengine.dist import get_rank, is_distributed
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.utils import get_total_norm

from mmcakd.arguments import NonNegativeInt
from mmcakd.registry import HOOKS
from mmcakd.utils import replacing

from .utils import optim_wrappers, unwrap


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop a run at the first NaN or infinity, before it does harm.

    Every loss is looked at before its backward, and the norm of the gradient
    before the optimizer's step, so that nothing that is not finite reaches
    the weights. MMEngine reads the losses once a step in any case; here they
    are read all at once.

    Steps that a ``GradScaler`` leaves out, to find the scale of its losses,
    are its own business.

    On a stop, the batch is saved as ``non_finite_iter_N_rankR.pth`` in the
    work directory, and the batch is run again to find the first module whose
    output is not finite.

    Args:
        policy (str): ``'stop'``; ``'skip'``, which leaves out the step and
            stops after ``max_skips`` of them in a row; or ``'warn'``, which
            goes on. Defaults to ``'stop'``.
        max_skips (int): Defaults to 10.

    Raises:
        FloatingPointError: A loss or a gradient is not finite.

    Examples:
        >>> default_hooks = dict(
        ...     non_finite=dict(type='mmcakd.NonFiniteHook', policy='skip'))
    """

    def __init__(
        self,
        policy: Literal['stop', 'skip', 'warn'] = 'stop',
        max_skips: NonNegativeInt = 10,
    ) -> None:
        self.policy = policy
        self.max_skips = max_skips
        self._skipped = 0
        self._buffers: dict[str, torch.Tensor] = {}
        self._handles: list = []

    def before_train(self, runner: Runner) -> None:
        """Look at losses and gradients from now on."""
        self._runner = runner
        self._model = unwrap(runner.model)
        # Where every kind of model and of wrapper passes with its losses.
        self._model.parse_losses = self._parse_losses
        for wrapper in optim_wrappers(runner.optim_wrapper):
            self._handles.append(
                wrapper.optimizer.register_step_pre_hook(
                    lambda *args, wrapper=wrapper: self._check_step(wrapper)
                )
            )

    def after_train(self, runner: Runner) -> None:
        """Look no longer."""
        del self._model.parse_losses
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._buffers.clear()
        del self._runner, self._model

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Keep the batch, and what a skipped step must not change."""
        self._batch = data_batch
        first = next(optim_wrappers(runner.optim_wrapper))
        if self.policy == 'skip' and first.should_update():
            self._buffers = {
                name: buffer.clone()
                for name, buffer in self._model.named_buffers()
            }

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Drop the batch."""
        del self._batch

    # ------------------------------------------------------------- checking

    def _parse_losses(
        self, losses: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum the losses as the model does, and read all of them at once."""
        total, log = type(self._model).parse_losses(self._model, losses)
        values = torch.stack(
            [value.detach().double() for value in log.values()]
        ).cpu()
        log = type(log)(zip(log, values, strict=True))
        bad = {
            name: value.item()
            for name, value in log.items()
            if 'loss' in name and not value.isfinite()
        }
        if len(bad) > 1:
            bad.pop('loss', None)  # the sum
        # What is skipped is decided by the gradients, which all processes
        # share.
        if bad and self.policy == 'stop':
            self._stop(
                ' and '.join(f'{name} is {bad[name]}' for name in sorted(bad))
            )
        elif bad and self.policy == 'warn':
            self._runner.logger.warning(f'{bad} in {self._place()}')
        return total, log

    def _check_step(self, wrapper: OptimWrapper) -> None:
        """Look at the gradients that an optimizer is about to apply."""
        found_inf = getattr(wrapper.optimizer, 'found_inf', None)
        if found_inf is not None and found_inf.item():
            return  # a fused optimizer leaves out the step by itself
        parameters = [
            parameter
            for group in wrapper.optimizer.param_groups
            for parameter in group['params']
            if parameter.grad is not None
        ]
        if self._norm(wrapper, parameters).isfinite():
            self._skipped = 0
            return
        names = {
            parameter: name
            for name, parameter in self._model.named_parameters()
        }
        bad = [
            names[parameter]
            for parameter in parameters
            if not parameter.grad.isfinite().all()
        ]
        what = 'the norm of the gradient is not finite'
        if bad:
            what += (
                f': {len(bad)} of {len(parameters)} parameters, the first is '
                f'{bad[0]}'
            )
        self._skipped += 1
        if self.policy == 'stop' or (
            self.policy == 'skip' and self._skipped > self.max_skips
        ):
            self._stop(what)
        self._runner.logger.warning(f'{what}, in {self._place()}')
        if self.policy == 'skip':
            # Optimizers pass over what has no gradient.
            for parameter in parameters:
                parameter.grad = None
            for name, buffer in self._model.named_buffers():
                if name in self._buffers:
                    buffer.copy_(self._buffers[name])

    @staticmethod
    def _norm(wrapper: OptimWrapper, parameters: list) -> torch.Tensor:
        if (wrapper.clip_grad_kwargs or {}).get('max_norm') is not None:
            # Clipping has just read it.
            norm = wrapper.message_hub.get_scalar(f'train/{wrapper.grad_name}')
            return torch.tensor(norm.current())
        return get_total_norm([parameter.grad for parameter in parameters])

    # ------------------------------------------------------------- stopping

    def _place(self) -> str:
        return f'iteration {self._runner.iter + 1}'

    def _stop(self, what: str) -> None:
        where = self._save_batch()
        cause = self._find_cause()
        times = f' ({self._skipped} times in a row)' * (self._skipped > 1)
        raise FloatingPointError(
            f'{what}{times} in {self._place()}, and nothing of this step was '
            f'applied. {cause}. The batch is in {where}. Check the data and '
            'the weights of the teacher, lower the learning rate or clip the '
            "gradient; NonFiniteHook(policy='skip') leaves out such steps"
        )

    def _save_batch(self) -> Path:
        path = Path(
            self._runner.work_dir,
            f'non_finite_iter_{self._runner.iter + 1}_rank{get_rank()}.pth',
        )
        with replacing(path) as written:
            torch.save(_as_plain(self._batch), written)
        return path

    @torch.no_grad()
    def _find_cause(self) -> str:
        """Run the batch again, and watch every module."""
        if is_distributed():
            # Other processes would have to run with this one.
            return 'Run the batch in a single process to find the module'
        if not _is_finite(_as_plain(self._batch)):
            return 'The batch itself is not finite'
        # The numbers that were drawn in this step are drawn again.
        self._runner.call_hook(
            'before_train_iter', batch_idx=0, data_batch=self._batch
        )
        with _watching(self._modules()) as seen:
            wrapper = next(optim_wrappers(self._runner.optim_wrapper))
            with wrapper.optim_context(self._model):
                data = self._model.data_preprocessor(self._batch, True)
                self._model._run_forward(data, mode='loss')
        return seen[0] if seen else 'Every module has finite outputs'

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self._model.named_modules()
        # Kept outside of the module tree.
        teacher = getattr(self._model, 'teacher', None)
        if isinstance(teacher, nn.Module):
            yield from teacher.named_modules(prefix='teacher')


@contextmanager
def _watching(modules: Iterator[tuple[str, nn.Module]]) -> Iterator[list[str]]:
    """Note modules that make of finite inputs what is not finite."""
    seen: list[str] = []
    handles = []

    def watch(name: str, module: nn.Module) -> Any:
        def look(_, inputs, outputs) -> None:
            if _is_finite(outputs) or not _is_finite(inputs):
                return
            weights = [*module.parameters(False), *module.buffers(False)]
            why = '' if _is_finite(weights) else ', whose weights are not'
            seen.append(
                f'The first module whose output is not finite is {name} '
                f'({type(module).__name__}){why}'
            )

        return module.register_forward_hook(look)

    try:
        handles += [watch(name, module) for name, module in modules if name]
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return True


def _as_plain(value: Any) -> Any:
    """Tensors, numbers and words alone, which load without running code."""
    if isinstance(value, dict):
        return {str(key): _as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if hasattr(value, 'all_items'):
        return {key: _as_plain(item) for key, item in value.all_items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
