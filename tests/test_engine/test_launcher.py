"""Several processes without an accelerator."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config

from mmcakd.engine import launcher, prepare_cpu_launcher
from mmcakd.engine.launcher import check_shares

STEPS = 8
MOMENTUM = 0.9


@pytest.fixture
def make_cfg(short_run, tiny):
    """Two steps an epoch, of four images; the end of distillation after six.

    The student has no BatchNorm, which sees the images of a process alone.
    """

    def make(name: str, batch_size: int) -> Config:
        cfg = short_run(
            name,
            model=tiny.distillation(
                architecture=tiny.classifier(tiny.convnext()),
                distiller=tiny.scalekd('LN2d'),
            ),
            train=dict(
                batch_size=batch_size,
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=4),
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            default_hooks=dict(checkpoint=None),
            # Not AdamW, which makes whole steps of gradients that are zero
            # but for rounding.
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.02, momentum=MOMENTUM),
                clip_grad=dict(max_norm=100.0),
            ),
            param_scheduler=None,
            custom_hooks=[dict(type='mmrazor.StopDistillHook', stop_epoch=3)],
        )
        cfg.train_dataloader.dataset.indices = [0, 5, 10, 15, 1, 6, 11, 16]
        return cfg

    return make


def test_processes_learn_what_one_learns_from_the_joint_batch(
    make_cfg, train_in_processes, read_states, assert_same_way
):
    train_in_processes(
        one=(make_cfg('one', 4), 1),
        two=(make_cfg('two', 2), 2),
        four=(make_cfg('four', 1), 4),
    )
    assert_same_way('one', 'two', 2, STEPS)
    assert_same_way('one', 'four', 4, STEPS)

    states = [
        read_states('two', 2, step)[0] for step in ('start', *range(STEPS))
    ]
    weights = [state['weights'] for state in states]
    for name in weights[0]:
        first, *_, last_but_one, last = (
            after[name] - before[name] for before, after in pairwise(weights)
        )
        # The softmax ignores a bias that all keys share.
        if not name.endswith('k_proj.bias'):
            assert first.any(), name
        if name.startswith('distiller'):
            # Once distillation has stopped, connectors only swing out.
            torch.testing.assert_close(
                last, MOMENTUM * last_but_one, rtol=1e-9, atol=1e-13
            )
    stopped = [state['losses']['distill.loss_kd'] == 0 for state in states[1:]]
    assert stopped == [False] * 6 + [True] * 2


@pytest.fixture
def make_unread(make_cfg, tiny):
    """Two teachers that run and a stored one; nothing reads the head."""

    def make(name: str, batch_size: int) -> Config:
        stages = dict(stages=dict(type='mmcakd.StageOutputs'))
        stored = [
            [[[(3 * i + c) % 7 / 7] * 4] * 4 for c in range(16)]
            for i in range(8)
        ]
        names = ('swin', 'vit', 'stored')
        targets = {
            each: dict(recorder='stages', teacher=each, data_idx=2)
            for each in names
        }
        cfg = make_cfg(name, batch_size)
        cfg.model = tiny.distillation(
            architecture=tiny.classifier(tiny.convnext()),
            teacher=None,
            teacher_ckpt=None,
            student_loss_weight=0,
            teachers=dict(
                swin=dict(model=tiny.classifier(tiny.swin()), ckpt='random'),
                # Without a head.
                vit=dict(
                    model=tiny.vit(type='mmpretrain.VisionTransformer'),
                    ckpt='random',
                ),
                stored=dict(
                    type='mmcakd.InMemoryTargets',
                    records=dict(stages={2: stored}),
                ),
            ),
            distiller=dict(
                student_recorders=stages,
                teacher_recorders=dict.fromkeys(names, stages),
                connectors={
                    each: dict(
                        type='mmcakd.FitNetConnector',
                        inputs=dict(feature=tiny.record('stages', True, 2)),
                        shape_like=target,
                    )
                    for each, target in targets.items()
                },
                distill_losses={
                    f'loss_{each}': dict(type='mmcakd.MSELoss')
                    for each in names
                },
                loss_forward_mappings={
                    f'loss_{each}': dict(
                        student=dict(connector=each), teacher=target
                    )
                    for each, target in targets.items()
                },
            ),
        )
        cfg.train_cfg.max_epochs = 2
        cfg.custom_hooks = [dict(type='mmcakd.TrainingSetHook')]
        return cfg

    return make


def test_processes_agree_on_several_teachers_and_an_unread_head(
    make_unread, train_in_processes, read_states, assert_same_way
):
    train_in_processes(
        one=(make_unread('one', 4), 1), two=(make_unread('two', 2), 2)
    )
    assert_same_way('one', 'two', 2, 4)
    (start,), (end,) = (read_states('one', 1, step) for step in ('start', 3))
    assert set(end['losses']) >= {
        'distill.loss_swin',
        'distill.loss_vit',
        'distill.loss_stored',
    }
    # Whatever is trained gets a gradient, or DDP would wait for it.
    parts = {name.split('.')[0] for name in end['weights']}
    assert parts == {'architecture', 'distiller'}
    for name, weight in end['weights'].items():
        assert not name.startswith('architecture.head'), name
        assert not torch.equal(weight, start['weights'][name]), name


# ------------------------------------------------------------- equal shares


def shares(launcher: str, **sampler) -> Config:
    loader = dict(sampler=dict(type='DefaultSampler', **sampler))
    return Config(dict(launcher=launcher, train_dataloader=loader))


@pytest.mark.parametrize('name', ['pytorch', 'slurm', 'mpi'])
def test_unequal_shares_are_refused(name):
    with pytest.raises(ValueError, match='round_up=False lets some .* remove'):
        check_shares(shares(name, round_up=False))


@pytest.mark.parametrize(
    'cfg',
    [
        shares('none', round_up=False),
        shares('pytorch', round_up=True),
        shares('pytorch'),
        Config(dict(launcher='pytorch', train_dataloader=None)),
        Config(dict(model=dict())),
    ],
)
def test_equal_shares_are_accepted(cfg):
    check_shares(cfg)


# -------------------------------------------------------------- its decisions


@pytest.fixture
def pretend(monkeypatch):
    """Pretend a kind of machine, and count the groups that are started."""
    started = []
    monkeypatch.setattr(
        dist, 'init_process_group', lambda *args: started.append(args)
    )

    def use(device: str) -> list:
        monkeypatch.setattr(launcher, 'get_device', lambda: device)
        return started

    return use


@pytest.mark.parametrize(
    ('device', 'name'), [('cpu', 'none'), ('cuda', 'pytorch')]
)
def test_nothing_is_done_where_nothing_is_needed(pretend, device, name):
    started = pretend(device)
    cfg = Config(dict(launcher=name, sync_bn='torch'))
    before = copy.deepcopy(cfg.to_dict())
    prepare_cpu_launcher(cfg)
    assert cfg.to_dict() == before
    assert started == []


def test_config_without_launcher_is_left_alone(pretend):
    started = pretend('cpu')
    cfg = Config(dict(model=dict()))
    prepare_cpu_launcher(cfg)
    assert cfg.to_dict() == dict(model=dict())
    assert started == []


def test_model_is_wrapped_without_a_device(pretend):
    started = pretend('cpu')
    cfg = Config(dict(launcher='pytorch'))
    prepare_cpu_launcher(cfg)
    assert started == [('gloo',)]
    wrapper = cfg.model_wrapper_cfg
    assert wrapper.type == 'MMDistributedDataParallel'
    assert wrapper.device_ids is None
    assert wrapper.find_unused_parameters is False


def test_settings_of_the_wrapper_are_kept(pretend):
    pretend('cpu')
    cfg = Config(
        dict(
            launcher='pytorch',
            find_unused_parameters=True,
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', broadcast_buffers=True
            ),
        )
    )
    prepare_cpu_launcher(cfg)
    assert cfg.model_wrapper_cfg.broadcast_buffers is True
    assert cfg.model_wrapper_cfg.find_unused_parameters is True
    assert cfg.model_wrapper_cfg.device_ids is None


def test_synchronised_batch_norm_is_dropped_with_a_warning(
    pretend, monkeypatch
):
    pretend('cpu')
    said = []
    monkeypatch.setattr(
        launcher, 'print_log', lambda text, *args, **kwargs: said.append(text)
    )
    cfg = Config(dict(launcher='pytorch', sync_bn='torch'))
    prepare_cpu_launcher(cfg)
    assert 'sync_bn' not in cfg
    (warning,) = said
    assert 'each process normalises by its own batch' in warning


def test_synchronised_batch_norm_of_a_layer_is_plain_without_an_accelerator(
    pretend, tiny
):
    def make() -> Config:
        student = tiny.classifier(tiny.resnet(norm_cfg=dict(type='SyncBN')))
        model = tiny.distillation(architecture=student)
        return Config(dict(launcher='pytorch', model=model))

    pretend('cpu')
    prepare_cpu_launcher(cfg := make())
    assert cfg.model.architecture.backbone.norm_cfg.type == 'BN'
    pretend('cuda')
    prepare_cpu_launcher(cfg := make())
    assert cfg.model.architecture.backbone.norm_cfg.type == 'SyncBN'
