"""The training set of a run is checked, and a memory survives its end."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmpretrain.datasets import CustomDataset
from mmpretrain.engine.hooks import SwitchRecipeHook
from mmpretrain.registry import DATASETS
from torch import nn
from torch.utils.data import DataLoader

from mmcakd.datasets import UnlabelledImages
from mmcakd.engine import TrainingSetHook
from mmcakd.engine.hooks.training_set_hook import (
    check_labels,
    check_steps,
    check_switches,
    count_head_classes,
    find_labels,
    read_training_labels,
    smallest_batch,
)
from mmcakd.models.data_preprocessors import NamedInputsPreprocessor

#: Of the 20 images in the folder of these tests.
LABELS = [label for label in range(5) for _ in range(4)]


@pytest.fixture
def cfg(image_folder):
    return dict(
        type='mmpretrain.CustomDataset',
        data_root=str(image_folder),
        data_prefix='train',
    )


# ------------------------------------------------------------------- labels


def test_labels_are_those_of_all_images_in_order(cfg):
    labels = read_training_labels(DATASETS.build(cfg))
    assert labels.dtype == torch.long
    assert labels.tolist() == LABELS


@pytest.mark.parametrize(
    'wrap',
    [
        lambda cfg: dict(type='RepeatDataset', dataset=cfg, times=3),
        lambda cfg: dict(
            type='ClassBalancedDataset', dataset=cfg, oversample_thr=1.0
        ),
        lambda cfg: dict(
            type='KFoldDataset', dataset=cfg, fold=1, num_splits=4, seed=0
        ),
    ],
)
def test_samples_of_a_wrapped_set_have_places_in_the_inner_one(cfg, wrap):
    cfg['lazy_init'] = False
    wrapped = DATASETS.build(wrap(cfg))
    labels = read_training_labels(wrapped)
    samples = [wrapped.get_data_info(i) for i in range(len(wrapped))]
    for sample in samples:
        assert labels[sample['sample_idx']] == sample['gt_label']
    assert len({sample['img_path'] for sample in samples}) == len(labels)


def test_subset_has_places_of_its_own(cfg):
    dataset = DATASETS.build(cfg | dict(indices=[19, 0, 7]))
    assert read_training_labels(dataset).tolist() == [4, 0, 1]
    assert dataset.get_data_info(2)['sample_idx'] == 2


def test_joined_data_sets_are_refused(cfg):
    joined = dict(type='ConcatDataset', datasets=[cfg, cfg])
    repeated = dict(type='RepeatDataset', dataset=joined, times=2)
    for wrapped in (joined, repeated):
        with pytest.raises(ValueError, match='ConcatDataset of 2 data sets'):
            read_training_labels(DATASETS.build(wrapped))


def test_data_set_without_labels_is_refused():
    with pytest.raises(ValueError, match='get_gt_labels'):
        read_training_labels([1, 2, 3])


@pytest.mark.parametrize('labels', [np.eye(3), np.array([0.5, 1.0])])
def test_several_labels_an_image_are_refused(labels):
    dataset = SimpleNamespace(get_gt_labels=lambda: labels)
    with pytest.raises(ValueError, match='no single class index'):
        read_training_labels(dataset)


# ------------------------------------------------------------------ the runs


class Power(Exception):
    """The power failed."""


class FailAt(Hook):
    """Stop a run in the middle of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (runner.epoch, batch_idx) == self.at:
            raise Power


def crd(tiny) -> dict:
    """CRD between the last stages."""
    embed = dict(type='mmcakd.PooledEmbedding', embed_dims=8)
    return dict(
        type='mmcakd.CrossArchDistiller',
        student_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
        teacher_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
        connectors={
            name: embed | dict(inputs=dict(feature=feature))
            for name, feature in dict(
                s=tiny.record('stages', True, 3),
                t=tiny.record('stages', False, 3),
            ).items()
        },
        distill_losses=dict(
            loss_crd=dict(
                type='mmcakd.CRDLoss', embed_dims=8, num_negatives=30
            )
        ),
        loss_forward_mappings=dict(
            loss_crd=dict(
                student=dict(connector='s'),
                teacher=dict(connector='t'),
                index=dict(label='index'),
                label=dict(label='hard'),
            )
        ),
    )


@pytest.fixture
def crd_run(short_run, tiny):
    def make(name: str, hooks=('mmcakd.TrainingSetHook',), **kwargs):
        return short_run(
            name,
            model=tiny.distillation(distiller=crd(tiny)),
            custom_hooks=[
                dict(type=hook) if isinstance(hook, str) else hook
                for hook in hooks
            ],
            **kwargs,
        )

    return make


def read(cfg, name: str = 'epoch_3.pth') -> dict:
    return torch.load(f'{cfg.work_dir}/{name}')


PREFIX = 'distiller.distill_losses.loss_crd.'


def test_interrupted_run_ends_with_the_same_memory(crd_run):
    unbroken = crd_run('unbroken', augment=True)
    Runner.from_cfg(unbroken).train()
    broken = crd_run('broken', augment=True)
    runner = Runner.from_cfg(broken)
    runner.register_hook(FailAt(epoch=2, step=3))
    with pytest.raises(Power):
        runner.train()
    broken.update(resume=True, experiment_name='resumed')
    Runner.from_cfg(broken).train()

    expected = read(unbroken)['state_dict']
    found = read(broken)['state_dict']
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    assert expected[f'{PREFIX}student_memory'].shape == (20, 8)
    assert expected[f'{PREFIX}steps'] == 15
    start = read(unbroken, 'epoch_1.pth')['state_dict']
    for name in ('student_memory', 'teacher_memory'):
        assert not torch.equal(start[PREFIX + name], expected[PREFIX + name])


def test_every_image_is_remembered(crd_run):
    cfg = crd_run('run', train_cfg=dict(by_epoch=True, max_epochs=1))
    runner = Runner.from_cfg(cfg)
    memories = []

    class Look(Hook):
        def before_train(self, runner):
            loss = runner.model.distiller.distill_losses['loss_crd']
            assert loss.labels.tolist() == LABELS
            memories.append(loss.student_memory.clone())

    runner.register_hook(Look())
    runner.train()
    loss = runner.model.distiller.distill_losses['loss_crd']
    changed = (loss.student_memory != memories[0]).any(1)
    assert changed.all()
    assert torch.allclose(
        loss.student_memory.norm(dim=1), torch.ones(20), atol=1e-5
    )


def test_averaged_copy_has_a_memory_too(crd_run):
    ema = dict(type='EMAHook', momentum=0.1)
    # The order in the config does not matter.
    cfg = crd_run(
        'ema',
        hooks=(ema, 'mmcakd.TrainingSetHook'),
        train_cfg=dict(by_epoch=True, max_epochs=1),
    )
    Runner.from_cfg(cfg).train()
    saved = read(cfg, 'epoch_1.pth')
    assert f'{PREFIX}student_memory' in saved['state_dict']
    assert f'module.{PREFIX}student_memory' in saved['ema_state_dict']


def test_run_without_the_hook_says_what_is_missing(crd_run):
    runner = Runner.from_cfg(crd_run('run', hooks=()))
    with pytest.raises(RuntimeError, match='mmcakd.TrainingSetHook'):
        runner.train()


def test_nothing_is_read_if_nothing_asks(short_run, tiny, monkeypatch):
    monkeypatch.setattr(
        CustomDataset, 'get_gt_labels', lambda self: pytest.fail('was read')
    )
    cfg = short_run(
        model=tiny.distillation(
            distiller=tiny.logit_kd(), calculate_student_loss=False
        ),
        custom_hooks=[dict(type='mmcakd.TrainingSetHook')],
        train_cfg=dict(by_epoch=True, max_epochs=1),
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 5


# -------------------------------------------------------- labels of no class


@pytest.fixture
def checked_run(short_run, tiny):
    """Make a run of logit distillation that the hook looks at."""

    def make(classes: int = 5, loss=None, **kwargs):
        model = tiny.distillation(
            architecture=tiny.classifier(tiny.resnet(), classes=classes),
            teacher=tiny.classifier(tiny.swin(), classes=classes),
            distiller=tiny.logit_kd(**loss or {}),
        )
        return short_run(
            **dict(
                model=model,
                custom_hooks=[dict(type='mmcakd.TrainingSetHook')],
            )
            | kwargs
        )

    return make


def refusal(cfg) -> str:
    """Run a config that must be refused before its first step."""
    runner = Runner.from_cfg(cfg)
    runner.register_hook(FailAt(epoch=0, step=0))
    with pytest.raises(ValueError) as caught:
        runner.train()
    return str(caught.value)


def test_labels_beyond_the_head_are_named_before_training(checked_run):
    message = refusal(checked_run(classes=3))
    # Of five classes with four images each, two are too many.
    for part in (
        '8 of 20 training images',
        'the 3 classes',
        "student's head",
        'label 4',
        'num_classes',
    ):
        assert part in message


def test_head_of_more_classes_than_the_training_set_is_fine(checked_run):
    start(checked_run(classes=9))


def test_labels_of_a_plain_classifier_are_checked(checked_run, tiny):
    cfg = checked_run(
        model=tiny.classifier(tiny.resnet(), classes=4), name='plain'
    )
    assert "4 classes of the model's head" in refusal(cfg)


def test_wrapped_and_joined_data_sets_tell_their_labels(cfg):
    joined = dict(type='ConcatDataset', datasets=[cfg, cfg])
    repeated = dict(type='RepeatDataset', dataset=joined, times=2)
    for wrapped in (joined, repeated):
        assert find_labels(DATASETS.build(wrapped)).tolist() == 2 * LABELS


def no_labels():
    raise KeyError('gt_label')


def ragged():
    return np.array([[0, 1], [2]])


@pytest.mark.parametrize(
    'dataset',
    [
        range(4),
        SimpleNamespace(get_gt_labels=no_labels),
        SimpleNamespace(get_gt_labels=ragged),
        SimpleNamespace(get_gt_labels=lambda: np.full((4, 7), 9)),
        SimpleNamespace(get_gt_labels=lambda: [dict(a=9), dict(a=9)]),
        SimpleNamespace(get_gt_labels=lambda: []),
        SimpleNamespace(
            datasets=[
                range(4),
                SimpleNamespace(get_gt_labels=lambda: np.array([9])),
            ]
        ),
    ],
)
def test_data_sets_that_do_not_tell_a_class_each_pass(tiny, dataset):
    check_labels(tiny.build(tiny.classifier(tiny.resnet())), dataset)


@pytest.mark.parametrize(
    ('labels', 'beyond'), [([0, 5], 5), ([-1, 0], -1), ([-100, 4], None)]
)
def test_labels_from_0_to_below_the_classes_are_good(tiny, labels, beyond):
    model = tiny.build(tiny.classifier(tiny.resnet()))
    dataset = SimpleNamespace(get_gt_labels=lambda: np.array(labels))
    if beyond is None:
        check_labels(model, dataset)
        return
    with pytest.raises(ValueError, match=f'1 of 2.*label {beyond}:'):
        check_labels(model, dataset)


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='TimmClassifier', model_name='resnet10t', num_classes=6),
        dict(
            type='mmcakd.TorchvisionClassifier',
            model_name='resnet18',
            num_classes=6,
        ),
    ],
)
def test_classes_of_wrapped_networks_are_read(tiny, cfg):
    cfg['type'] = cfg['type'].replace('Timm', 'mmpretrain.Timm')
    assert count_head_classes(tiny.build(cfg)) == 6


def test_models_that_do_not_classify_pass(tiny):
    assert count_head_classes(nn.Conv2d(1, 2, 3)) is None
    headless = tiny.classifier(tiny.resnet()) | dict(head=None)
    assert count_head_classes(tiny.build(headless)) is None


@pytest.mark.parametrize(
    ('label', 'student_loss', 'expected'),
    [
        (None, True, ['student']),
        (None, False, []),
        ('hard', False, ['student', 'teacher']),
        ('index', False, []),
    ],
)
def test_networks_whose_logits_meet_labels(
    tiny, label, student_loss, expected
):
    distiller = tiny.logit_kd()
    if label:
        distiller['distill_losses']['loss_kd'] = dict(type='mmcakd.DKDLoss')
        mapping = distiller['loss_forward_mappings']['loss_kd']
        mapping['label'] = dict(label=label)
    model = tiny.build_distillation(
        distiller=distiller, calculate_student_loss=student_loss
    )
    assert list(model.label_readers()) == expected


# ----------------------------------------------------------------- zero steps


@pytest.mark.parametrize(
    ('kind', 'train_cfg', 'named'),
    [
        (EpochBasedTrainLoop, dict(max_epochs=0), 'max_epochs.*got 0'),
        (EpochBasedTrainLoop, dict(max_epochs=-3), 'max_epochs.*got -3'),
        (IterBasedTrainLoop, dict(max_iters=0), 'max_iters.*got 0'),
        (IterBasedTrainLoop, dict(max_iters=-1), 'max_iters.*got -1'),
        (
            EpochBasedTrainLoop,
            dict(max_epochs=1, val_interval=0),
            'val_interval should be a positive whole number, but got 0',
        ),
        (
            IterBasedTrainLoop,
            dict(max_iters=5, val_interval='1'),
            r"got '1' \(str\)",
        ),
        (
            EpochBasedTrainLoop,
            dict(max_epochs=1, val_begin=-1),
            'val_begin.*at least 0.*got -1',
        ),
    ],
)
def test_loop_that_would_not_train_is_refused(kind, train_cfg, named):
    runner = SimpleNamespace(visualizer=None, _val_loop={})
    loop = kind(runner, DataLoader(range(4)), **train_cfg)
    runner._train_loop = runner.train_loop = loop
    with pytest.raises(ValueError, match=f'train_cfg: .*{named}'):
        check_steps(runner)
    if 'val' in named:
        runner._val_loop = None
        check_steps(runner)


@pytest.mark.parametrize('value', ['3', 2.5, True, None, 0])
def test_limits_are_checked_before_the_loop_is_built(value):
    for name in ('max_epochs', 'max_iters'):
        runner = SimpleNamespace(_train_loop={name: value}, train_loop=None)
        with pytest.raises(ValueError, match=f'train_cfg: {name} should be'):
            check_steps(runner)


def test_no_batch_is_told_before_schedules_count_steps(checked_run):
    # One of the schedules here is converted to iterations.
    cfg = checked_run(train=dict(batch_size=21, drop_last=True))
    assert any(s.get('convert_to_iter_based') for s in cfg.param_scheduler)
    with pytest.raises(ValueError, match='batch_size to at most 20'):
        check_steps(Runner.from_cfg(cfg))


def test_run_without_an_epoch_is_refused(checked_run):
    train_cfg = dict(by_epoch=True, max_epochs=0)
    message = refusal(checked_run(train_cfg=train_cfg, param_scheduler=[]))
    assert message.endswith('a positive whole number, but got 0 (int)')


@pytest.mark.parametrize('processes', [1, 2])
def test_batch_above_the_training_set(checked_run, monkeypatch, processes):
    monkeypatch.setattr(
        'mmengine.dataset.sampler.get_dist_info', lambda: (0, processes)
    )
    monkeypatch.setattr(
        'mmcakd.engine.hooks.training_set_hook.get_world_size',
        lambda: processes,
    )
    share = 20 // processes
    train = dict(batch_size=share + 1, drop_last=True)
    message = refusal(checked_run(train=train, param_scheduler=[]))
    for part in (
        '20 training images',
        f'for {processes} process(es)',
        f'{share} each',
        f'batch of {share + 1}',
        f'at most {share}',
        'drop_last=False',
    ):
        assert part in message
    start(checked_run(train=dict(batch_size=share, drop_last=True)))


def test_endless_sampler_fills_every_batch(checked_run):
    cfg = checked_run(
        train=dict(
            batch_size=21,
            drop_last=True,
            sampler=dict(type='InfiniteSampler', shuffle=True),
        ),
        train_cfg=dict(by_epoch=False, max_iters=1, val_interval=1),
        param_scheduler=[],
    )
    cfg.default_hooks.pop('seed')
    start(cfg)


def test_empty_training_set(checked_run, tmp_path):
    empty = tmp_path / 'empty.txt'
    empty.write_text('')
    cfg = checked_run(param_scheduler=[])
    cfg.train_dataloader.dataset.update(
        ann_file=str(empty), data_prefix='', serialize_data=False
    )
    message = refusal(cfg)
    assert 'the training set is empty' in message
    assert 'ann_file' in message


# ---------------------------------------------------------- smallest batches


class Sized:
    """A batch sampler of someone's own."""

    def __iter__(self):
        yield from ([0, 1], [2])

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    ('images', 'arguments', 'expected'),
    [
        (12, dict(batch_size=4), 4),
        (13, dict(batch_size=4), 1),
        (15, dict(batch_size=4), 3),
        (13, dict(batch_size=4, drop_last=True), 4),
        # Less than a batch.
        (3, dict(batch_size=4), 3),
        (3, dict(batch_sampler=Sized()), None),
    ],
)
def test_smallest_batch_of_an_epoch(images, arguments, expected):
    loader = DataLoader(range(images), **arguments)
    assert smallest_batch(loader) == expected
    if expected and not arguments.get('drop_last'):
        assert min(map(len, loader)) == expected


@pytest.mark.parametrize(
    ('sampler', 'expected'),
    [
        # 7 images for each of two processes, of which one is repeated.
        (lambda data: DefaultSampler(data, shuffle=False), 1),
        # 6 for one of them, which is this.
        (lambda data: DefaultSampler(data, shuffle=False, round_up=False), 3),
        (InfiniteSampler, 3),
    ],
)
def test_smallest_batch_is_that_of_the_process(monkeypatch, sampler, expected):
    monkeypatch.setattr(
        'mmengine.dataset.sampler.get_dist_info', lambda: (1, 2)
    )
    data = range(13)
    loader = DataLoader(data, batch_size=3, sampler=sampler(data))
    assert smallest_batch(loader) == expected


def test_labels_that_are_not_there_are_asked_for(image_folder):
    dataset = UnlabelledImages(data_root=str(image_folder))
    assert find_labels(dataset) is None
    with pytest.raises(ValueError, match='UnlabelledImages has no labels, wh'):
        read_training_labels(dataset)


# ------------------------------------------------------------------- mixing


@pytest.mark.parametrize(
    ('kind', 'schedule', 'refused'),
    [
        ('hard', [dict(action_epoch=2, batch_augments=True)], True),
        ('hard', [dict(action_epoch=3), dict(action_epoch=2)], False),
        ('hard', [dict(action_epoch=2, batch_augments=None)], False),
        ('auto', [dict(action_epoch=2, batch_augments=True)], False),
    ],
)
def test_mixing_that_a_hook_will_switch_on_is_refused_before_training(
    tiny, kind, schedule, refused
):
    distiller = tiny.logit_kd(type='mmcakd.DKDLoss')
    mapping = distiller['loss_forward_mappings']['loss_kd']
    mapping['label'] = dict(label=kind)
    model = tiny.build_distillation(distiller=distiller)
    for recipe in schedule:
        if recipe.get('batch_augments'):
            mixup = dict(augments=dict(type='Mixup', alpha=0.5))
            recipe['batch_augments'] = mixup
    hooks = [TrainingSetHook(), SwitchRecipeHook(schedule)]
    if refused:
        with pytest.raises(ValueError, match='SwitchRecipeHook, mixes images'):
            check_switches(hooks, model)
    else:
        check_switches(hooks, model)
    check_switches(hooks, model.student)


def test_mixing_images_that_have_other_inputs_is_refused_before_training():
    model = nn.Module()
    cfg = dict(mean=[0.0], std=[1.0])
    model.data_preprocessor = NamedInputsPreprocessor(image=cfg, depth=cfg)
    mixup = dict(augments=dict(type='Mixup', alpha=0.5))
    hook = SwitchRecipeHook([dict(action_epoch=2, batch_augments=mixup)])
    with pytest.raises(ValueError, match='change one input alone'):
        check_switches([hook], model)
    check_switches([SwitchRecipeHook([dict(action_epoch=2)])], model)


def test_a_run_looks_for_the_pairs_of_its_images(checked_run, image_folder):
    load = dict(
        type='mmcakd.LoadPairedImage',
        name='depth',
        root=str(image_folder / 'train'),
        image_root=str(image_folder / 'train'),
    )

    def make(where: str, **kwargs):
        cfg = checked_run()
        pipeline = cfg.train_dataloader.dataset.pipeline
        flip = dict(type='RandomFlip', prob=0.5)
        shared = dict(
            type='mmcakd.SharedTransforms',
            transforms=pipeline[1:-1],
            names=['depth'],
        )
        with_pairs = [pipeline[0], load | kwargs, shared, pipeline[-1]]
        if where == 'data':
            cfg.train_dataloader.dataset.pipeline = with_pairs
        else:
            later = dict(action_epoch=2, train_pipeline=[*with_pairs, flip])
            switch = dict(type='SwitchRecipeHook', schedule=[later])
            cfg.custom_hooks.append(switch)
        return Runner.from_cfg(cfg)

    with pytest.raises(FileNotFoundError, match='for 20 of 20 images'):
        make('data', suffix='.tiff').train()
    with pytest.raises(ValueError, match='RandomFlip of the pipeline moves'):
        make('hook').train()


def test_a_run_looks_at_its_schedule(checked_run):
    mixup = dict(augments=dict(type='Mixup', alpha=0.5))
    schedule = [dict(action_epoch=2, batch_augments=mixup)]
    cfg = checked_run(loss=dict(type='mmcakd.DKDLoss'))
    mapping = cfg.model.distiller.loss_forward_mappings.loss_kd
    mapping.label = dict(label='hard')
    cfg.custom_hooks.append(dict(type='SwitchRecipeHook', schedule=schedule))
    assert 'mixes images' in refusal(cfg)


@pytest.fixture
def nce_run(short_run, tiny):
    """Make a run with an InfoNCE loss between the last stages."""
    embed = dict(
        type='mmcakd.PooledEmbedding',
        embed_dims=None,
        inputs=dict(feature=tiny.record('stages', True, 3)),
        shape_like=tiny.record('stages', False, 3),
    )
    distiller = dict(
        student_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
        teacher_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
        connectors=dict(embed=embed),
        distill_losses=dict(loss_nce=dict(type='mmcakd.InfoNCELoss')),
        loss_forward_mappings=dict(
            loss_nce=dict(
                student=dict(connector='embed'),
                teacher=tiny.record('stages', False, 3),
            )
        ),
    )

    def make(**kwargs):
        return short_run(
            model=tiny.distillation(distiller=distiller),
            custom_hooks=[dict(type='mmcakd.TrainingSetHook')],
            **kwargs,
        )

    return make


def start(cfg) -> Runner:
    """Run up to the first step."""
    runner = Runner.from_cfg(cfg)
    runner.register_hook(FailAt(epoch=0, step=0))
    with pytest.raises(Power):
        runner.train()
    return runner


def test_single_image_at_the_end_of_an_epoch_is_told_at_its_start(nce_run):
    # 19 of the 20 images, and 1.
    runner = Runner.from_cfg(nce_run(train=dict(batch_size=19)))
    runner.register_hook(FailAt(epoch=0, step=0))
    with pytest.raises(ValueError, match='single image.*drop_last=True'):
        runner.train()
    start(nce_run(train=dict(batch_size=19, drop_last=True)))
    start(nce_run(train=dict(batch_size=18)))


def test_run_without_epochs_has_no_rest(nce_run):
    cfg = nce_run(
        train=dict(
            batch_size=19, sampler=dict(type='InfiniteSampler', shuffle=True)
        ),
        train_cfg=dict(by_epoch=False, max_iters=2, val_interval=2),
    )
    cfg.default_hooks.pop('seed')
    start(cfg)


def test_testing_builds_no_training_set():
    class Part(nn.Module):
        def prepare_from_labels(self, labels):
            pytest.fail('was prepared')

        def check_batch_size(self, smallest):
            pytest.fail('was checked')

    runner = SimpleNamespace(_train_loop=dict(by_epoch=True), model=Part())
    TrainingSetHook().before_run(runner)


# ----------------------------------------------- students without loss or head


def test_stopping_must_leave_something_to_learn(checked_run):
    cfg = checked_run()
    cfg.model.student_loss_weight = 0
    stop = dict(type='mmrazor.StopDistillHook', stop_epoch=1)
    cfg.custom_hooks.append(stop)
    assert 'nothing would be left to learn' in refusal(cfg)


def test_classes_of_a_student_without_a_head_are_not_evaluated(checked_run):
    cfg = checked_run()
    stages = dict(stages=dict(type='mmcakd.StageOutputs'))
    reference = dict(recorder='stages', data_idx=3)
    cfg.model.architecture.update(neck=None, head=None)
    cfg.model.distiller = dict(
        student_recorders=stages,
        teacher_recorders=stages,
        connectors=dict(
            project=dict(
                type='mmcakd.FitNetConnector',
                inputs=dict(feature=dict(reference, from_student=True)),
                shape_like=dict(reference, from_student=False),
            )
        ),
        distill_losses=dict(loss_mimic=dict(type='mmcakd.MSELoss')),
        loss_forward_mappings=dict(
            loss_mimic=dict(
                student=dict(connector='project'),
                teacher=dict(reference, from_student=False),
            )
        ),
    )
    message = refusal(cfg)
    assert 'has no head, but Accuracy evaluates its classes' in message
