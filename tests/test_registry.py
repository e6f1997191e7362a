"""Types of mmcakd resolve from everywhere."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import mmengine.registry as mmengine_registry
import mmpretrain.registry as mmpretrain_registry
import mmrazor.registry as mmrazor_registry
import pytest
from mmengine.registry import DefaultScope

import mmcakd.registry as registry

#: A type of each registry and the arguments it cannot do without.
TYPES = dict(
    MODELS=dict(type='mmcakd.SoftTargetLoss'),
    TASK_UTILS=dict(type='mmcakd.StageOutputsRecorder'),
    HOOKS=dict(type='mmcakd.SeedByEpochHook'),
    TRANSFORMS=dict(type='mmcakd.AnotherView', name='view1', transforms=[]),
)
SCOPES = [None, 'mmengine', 'mmpretrain', 'mmrazor', 'mmcakd']


@pytest.mark.parametrize('kind', TYPES)
@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize(
    'home',
    [mmengine_registry, mmpretrain_registry, mmrazor_registry, registry],
    ids=lambda home: home.__name__,
)
def test_prefixed_types_resolve_from_any_default_scope(home, scope, kind):
    cfg = TYPES[kind]
    with DefaultScope.overwrite_default_scope(scope):
        built = getattr(home, kind).build(dict(cfg))
    assert type(built).__module__.startswith('mmcakd.')
    assert type(built).__name__ == cfg['type'].partition('.')[2]


@pytest.mark.parametrize('scope', SCOPES)
def test_optimizer_wrapper_resolves_from_any_default_scope(scope):
    import torch
    from mmengine.optim import build_optim_wrapper

    net = torch.nn.Linear(1, 1)
    with DefaultScope.overwrite_default_scope(scope):
        built = build_optim_wrapper(
            net,
            dict(
                type='mmcakd.BF16OptimWrapper',
                optimizer=dict(type='SGD', lr=0.1),
            ),
        )
    assert type(built).__name__ == 'BF16OptimWrapper'


@pytest.mark.parametrize('kind', TYPES)
def test_plain_names_resolve_in_the_scope_of_mmcakd(kind):
    plain = TYPES[kind]['type'].partition('.')[2]
    with DefaultScope.overwrite_default_scope('mmcakd'):
        built = getattr(registry, kind).build(TYPES[kind] | dict(type=plain))
    assert type(built).__name__ == plain


@pytest.mark.parametrize(
    'name',
    [
        'CrossArchDistill',
        'CrossArchDistiller',
        'CAPConnector',
        'DualViewLoss',
        'SoftTargetLoss',
    ],
)
def test_the_promised_models_are_registered(name):
    assert registry.MODELS.get(f'mmcakd.{name}').__name__ == name


def test_stage_outputs_is_a_recorder_of_mmrazor():
    from mmrazor.models.task_modules import RecorderManager

    for scope in SCOPES[1:]:
        with DefaultScope.overwrite_default_scope(scope):
            manager = RecorderManager(
                dict(stages=dict(type='mmcakd.StageOutputs'))
            )
        recorder = manager.get_recorder('stages')
        assert type(recorder).__name__ == 'StageOutputsRecorder'


def test_types_resolve_in_fresh_processes_that_import_only_mmcakd():
    # Each registry imports its modules at the first look-up of a process, so
    # every combination gets a process, forked after the slow import.
    code = f"""
        import os
        import mmcakd
        import mmengine.registry as r
        from mmengine.registry import DefaultScope

        failed = []
        for scope in {SCOPES!r}:
            for kind, cfg in {TYPES!r}.items():
                child = os.fork()
                if not child:
                    with DefaultScope.overwrite_default_scope(scope):
                        getattr(r, kind).build(cfg)
                    os._exit(0)
                if os.waitpid(child, 0)[1]:
                    failed.append((scope, kind))
        print(failed)
        """
    root = str(Path(registry.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(filter(None, [root, *sys.path])),
        },
        timeout=300,
    )
    assert done.stdout.strip() == '[]', done.stderr
