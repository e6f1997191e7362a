"""The first NaN stops a run before it does harm."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook

from mmcakd.engine.hooks import NonFiniteHook


class Poison(Hook):
    """Make something not finite before a step."""

    priority = 'HIGHEST'

    def __init__(self, spoil, after: int = 6, steps: int = 1) -> None:
        self.spoil, self.steps = spoil, range(after, after + steps)
        self.before = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.steps:
            model = runner.model
            self.before = {
                key: value.clone() for key, value in model.state_dict().items()
            }
            self.spoil(model, data_batch)


def spoil_teacher(model, batch):
    block = model.teacher.model.backbone.stages[3].blocks[0].norm1
    block.weight.data[0] = float('nan')


def spoil_loss(model, batch):
    model.distiller.distill_losses.loss_kd.loss_weight = float('inf')


def spoil_image(model, batch):
    batch['inputs'] = batch['inputs'].float()
    batch['inputs'][0, 0, 0, 0] = float('nan')


def spoil_gradient(model, batch):
    def poison(grad):
        handle.remove()
        return grad * float('nan')

    handle = model.student.head.fc.bias.register_hook(poison)


@pytest.fixture
def make(short_run, tiny):
    def make(name: str = 'run', distiller=None, **kwargs):
        policy = kwargs.pop('hook', {})
        return short_run(
            name,
            model=tiny.distillation(distiller=distiller or tiny.logit_kd()),
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            default_hooks=dict(
                non_finite=dict(type='mmcakd.NonFiniteHook', **policy),
                checkpoint=dict(type='CheckpointHook', interval=1),
            ),
            **kwargs,
        )

    return make


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (
            spoil_teacher,
            r'distill\.loss_kd is nan in iteration 7.*first module.*'
            r'teacher\.model\.backbone\.stages\.3\.blocks\.0\.norm1 '
            r'\(LayerNorm\), whose weights are not',
        ),
        (
            spoil_loss,
            r'distill\.loss_kd is (inf|nan) in iteration 7.*distiller\.'
            r'distill_losses\.loss_kd \(SoftTargetLoss\)',
        ),
        (
            spoil_image,
            r'distill\.loss_kd is nan and student\.loss is nan.*'
            'The batch itself is not finite',
        ),
        (
            spoil_gradient,
            r'the norm of the gradient is not finite: 1 of \d+ parameters, '
            r'the first is architecture\.head\.fc\.bias in iteration 7.*'
            'Every module has finite outputs',
        ),
    ],
)
def test_run_stops_before_anything_is_applied(make, run, spoil, message):
    cfg = make()
    poison = Poison(spoil)
    runners = Keep()
    with pytest.raises(FloatingPointError, match=message):
        run(cfg, poison, runners)
    for name, parameter in runners.runner.model.named_parameters():
        assert torch.equal(parameter, poison.before[name]), name
    assert not Path(cfg.work_dir, 'epoch_2.pth').exists()
    # The batch can be read without running code.
    (path,) = Path(cfg.work_dir).glob('non_finite_iter_7_rank0.pth')
    saved = torch.load(path, weights_only=True)
    assert len(saved['inputs']) == 4
    assert len(saved['data_samples']) == 4
    assert 'gt_label' in saved['data_samples'][0]


class Keep(Hook):
    def before_train(self, runner):
        self.runner = runner


@pytest.mark.parametrize('counts', [1, 2])
def test_skipped_step_changes_nothing(make, run, counts):
    poison = Poison(spoil_image, after=6)
    after = {}

    class Compare(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, data_batch, outputs):
            after[runner.iter] = {
                key: value.clone()
                for key, value in runner.model.state_dict().items()
            }

    runner = run(
        make(
            hook=dict(policy='skip'),
            optim_wrapper=dict(
                optimizer=dict(type='AdamW', lr=1e-2),
                accumulative_counts=counts,
            ),
        ),
        poison,
        Compare(),
    )
    # With an accumulation over two batches, the step is that of the next one.
    left_out = after[6 + counts - 1]
    for name, value in poison.before.items():
        assert torch.equal(left_out[name], value), name
    assert runner.iter == 15
    for name, value in runner.model.state_dict().items():
        assert value.isfinite().all(), name
    moved = after[14]['architecture.head.fc.weight']
    assert not torch.equal(moved, poison.before['architecture.head.fc.weight'])


def test_too_many_skips_in_a_row_stop_the_run(make, run):
    cfg = make(hook=dict(policy='skip', max_skips=2))
    with pytest.raises(FloatingPointError, match=r'3 times in a row.*tion 9'):
        run(cfg, Poison(spoil_image, after=6, steps=9))


def test_skips_apart_do_not_add_up(make, run):
    class Twice(Poison):
        def __init__(self):
            super().__init__(spoil_image)
            self.steps = (3, 4, 7, 8, 11)

    cfg = make(hook=dict(policy='skip', max_skips=2))
    assert run(cfg, Twice()).iter == 15


def test_run_goes_on_with_a_warning_where_that_is_wanted(make, run):
    cfg = make(hook=dict(policy='warn'))
    runner = run(cfg, Poison(spoil_loss))
    assert runner.iter == 15
    (log,) = Path(cfg.work_dir).glob('*/*.log')
    assert 'distill.loss_kd' in log.read_text()
    assert 'in iteration 7' in log.read_text()


def test_clipped_gradient_is_looked_at(make, run):
    cfg = make(
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(max_norm=1.0)
        )
    )
    with pytest.raises(FloatingPointError, match='norm of the gradient'):
        run(cfg, Poison(spoil_gradient))


def test_losses_are_read_once_and_logged_as_they_were(make, run, monkeypatch):
    """The model is told no more than it is without the hook."""
    logged = {}

    class Log(Hook):
        def __init__(self, name):
            self.name = name

        def after_train_iter(self, runner, batch_idx, data_batch, outputs):
            logged.setdefault(self.name, []).append(
                {key: float(value) for key, value in outputs.items()}
            )

    for name in ('with', 'without'):
        cfg = make(name)
        if name == 'without':
            del cfg.default_hooks.non_finite
        run(cfg, Log(name))
    assert logged['with'] == logged['without']


def test_step_that_a_scaler_leaves_out_is_its_own_business():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), float('inf'))
    wrapper = SimpleNamespace(
        clip_grad_kwargs=None, optimizer=torch.optim.SGD([weight], lr=1.0)
    )
    said = []
    hook = NonFiniteHook(policy='warn')
    hook._model = torch.nn.ParameterDict(dict(weight=weight))
    hook._runner = SimpleNamespace(
        iter=0, logger=SimpleNamespace(warning=said.append)
    )
    # As GradScaler tells a fused optimizer.
    wrapper.optimizer.found_inf = torch.ones(())
    hook._check_step(wrapper)
    assert said == []
    wrapper.optimizer.found_inf = torch.zeros(())
    hook._check_step(wrapper)
    assert 'weight, in iteration 1' in said[0]


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match='policy.*stop.*skip.*warn'):
        NonFiniteHook(policy='ignore')
