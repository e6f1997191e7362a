"""A run that is told to stop finishes its step and can go on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.hooks import Hook


@pytest.fixture(autouse=True)
def signals():
    """Leave the signals of the test process as they were."""
    names = ('SIGTERM', 'SIGINT', 'SIGUSR1')
    former = {name: signal.getsignal(getattr(signal, name)) for name in names}
    yield former
    for name, handler in former.items():
        signal.signal(getattr(signal, name), handler)


@pytest.fixture
def make(short_run, tiny):
    """Five steps an epoch, a checkpoint after each epoch."""

    def make(name: str = 'run', **kwargs):
        model = tiny.distillation(
            architecture=tiny.classifier(tiny.vit(drop_rate=0.3)),
            distiller=tiny.logit_kd(),
        )
        stop = dict(type='mmcakd.CleanStopHook', **kwargs.pop('stop', {}))
        hooks = kwargs.pop('default_hooks', {})
        return short_run(
            name, model=model, default_hooks=dict(stop=stop) | hooks, **kwargs
        )

    return make


def send(name: str, after: int) -> Hook:
    """A signal in the middle of the step that follows so many."""

    class Send(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == after:
                os.kill(os.getpid(), getattr(signal, name))

    return Send()


def status(cfg) -> dict:
    return yaml.safe_load(Path(cfg.work_dir, 'status.yml').read_text())


@pytest.mark.parametrize(
    ('name', 'code', 'state'),
    [
        ('SIGTERM', 143, 'stopped'),
        ('SIGINT', 130, 'stopped'),
        ('SIGUSR1', 0, 'paused'),
    ],
)
def test_signal_ends_a_run_that_can_go_on(
    make, run, read, equal, signals, name, code, state
):
    unbroken = make('unbroken')
    run(unbroken)
    assert status(unbroken)['status'] == 'finished'
    cfg = make()
    with pytest.raises(SystemExit) as stop:
        run(cfg, send(name, after=7))
    assert stop.value.code == code
    said = status(cfg)
    assert (said['status'], said['reason']) == (state, name)
    # The step is finished, and no other is begun.
    assert said['iteration'] == 8
    saved = read(cfg.work_dir, Path(said['checkpoint']).name)
    assert saved['meta']['iter'] == 8
    # Signals are whoever's they were before.
    for other, handler in signals.items():
        assert signal.getsignal(getattr(signal, other)) == handler

    run(make(resume=True))
    assert status(cfg)['status'] == 'finished'
    expected, found = read(unbroken.work_dir), read(cfg.work_dir)
    for part in ('state_dict', 'optimizer'):
        assert equal(found[part], expected[part]) == []
    assert not Path(cfg.work_dir, 'paused.pth').exists()


def test_hours_end_a_run_with_success(make, run):
    cfg = make(stop=dict(max_hours=1e-9))
    with pytest.raises(SystemExit) as stop:
        run(cfg)
    assert stop.value.code == 0
    said = status(cfg)
    assert (said['status'], said['reason']) == ('paused', 'max_hours')
    assert said['iteration'] == 1


def test_many_hours_end_nothing(make, run):
    assert run(make(stop=dict(max_hours=1.0))).iter == 15


@pytest.mark.parametrize('interval', [1, 2])
def test_signal_in_an_evaluation(make, run, read, equal, interval):
    """The weights are averaged ones for its time."""

    class Send(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None):
            if runner.epoch == 1 and batch_idx == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    kwargs = dict(
        custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=interval)
        ),
    )
    unbroken = make('unbroken', **kwargs)
    run(unbroken)
    cfg = make(**kwargs)
    with pytest.raises(SystemExit):
        run(cfg, Send())
    # The checkpoint of the epoch is there already, or has to be written.
    name = {1: 'epoch_1.pth', 2: 'paused.pth'}[interval]
    assert Path(status(cfg)['checkpoint']).name == name
    run(make(resume=True, **kwargs))
    expected, found = read(unbroken.work_dir), read(cfg.work_dir)
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert equal(found[part], expected[part]) == []


def test_second_signal_ends_the_process_at_once(make, run, signals):
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Twice(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(make(), Twice())


def test_run_that_failed_leaves_signals_to_others(make, run):
    class Fail(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            raise ZeroDivisionError

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(ZeroDivisionError):
        run(make(), Fail())
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_process_that_is_forked_in_a_run_can_be_ended(make, run):
    class Fork(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 0:
                child = os.fork()
                if child == 0:
                    time.sleep(60)
                    os._exit(0)
                # Python drops what comes while a process is made.
                time.sleep(0.5)
                os.kill(child, signal.SIGTERM)
                _, self.code = os.waitpid(child, 0)

    fork = Fork()
    assert run(make(train_cfg=dict(by_epoch=True, max_epochs=1)), fork).iter
    assert os.waitstatus_to_exitcode(fork.code) == -signal.SIGTERM


def test_workers_outlive_a_signal_to_all_processes(make, run):
    """As a terminal and Slurm send it."""

    class Kill(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 6:
                pids = [
                    str(worker.pid)
                    for worker in torch.multiprocessing.active_children()
                ]
                # Another process than the workers' own sends them.
                for name in ('TERM', 'INT', 'USR1'):
                    subprocess.run(['kill', f'-{name}', *pids], check=True)

    workers = dict(num_workers=2, persistent_workers=True)
    assert run(make(train=workers), Kill()).iter == 15


def test_run_without_checkpoints_says_that_nothing_is_saved(make, run):
    cfg = make(default_hooks=dict(checkpoint=None), stop=dict(max_hours=1e-9))
    with pytest.raises(SystemExit):
        run(cfg)
    assert status(cfg)['checkpoint'] is None
    (log,) = Path(cfg.work_dir).glob('*/*.log')
    assert 'nothing is saved: there is no CheckpointHook' in log.read_text()


def test_processes_stop_after_the_same_step(
    make, read, equal, start_processes, tmp_path
):
    """Each gathers gradients of its own until a step of the optimizer."""
    cfgs = {}
    for name in ('unbroken', 'broken'):
        cfgs[name] = make(
            name,
            train=dict(batch_size=2),
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            optim_wrapper=dict(
                optimizer=dict(type='AdamW', lr=1e-2), accumulative_counts=3
            ),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            param_scheduler=None,
        )
        cfgs[name].dump(tmp_path / f'{name}.py')
    start_processes([[tmp_path / 'unbroken.py']] * 2, codes=(0, 0))
    # One of the two is told, and tells the other.
    hours = ['--max-hours', '1e-9']
    start_processes(
        [[tmp_path / 'broken.py'], [tmp_path / 'broken.py', *hours]],
        codes=(0, 0),
    )
    paused = read(cfgs['broken'].work_dir, 'paused.pth')
    assert paused['meta']['iter'] == 1
    first, second = paused['accumulated_gradients']
    name = 'architecture.head.layers.head.weight'
    assert not torch.equal(first[name], second[name])
    start_processes([[tmp_path / 'broken.py', '--resume']] * 2, codes=(0, 0))
    expected, found = (
        read(cfg.work_dir, 'epoch_2.pth') for cfg in cfgs.values()
    )
    for part in ('state_dict', 'optimizer'):
        assert equal(found[part], expected[part]) == []
