import importlib.util
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

REPO = Path(__file__).resolve().parents[2]


def load_tool(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPO / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(**given) -> Namespace:
    defaults = dict(
        config='configs/some_name.py',
        work_dir=None,
        resume=None,
        epochs=None,
        max_hours=None,
        amp=False,
        no_validate=False,
        auto_scale_lr=False,
        cfg_options={},
        launcher='none',
    )
    return Namespace(**defaults | given)


@pytest.fixture
def merge_args():
    return load_tool('tools/train.py').merge_args


@pytest.fixture
def cfg(tiny_config):
    return Config.fromfile(tiny_config)


def test_training_leaves_a_checkpoint_and_a_plain_student(trained):
    names = {path.name for path in trained.iterdir()}
    assert {'epoch_1.pth', 'student.pth', 'student.py'} <= names
    weights = torch.load(trained / 'student.pth')['state_dict']
    assert {key.split('.')[0] for key in weights} == {'backbone', 'head'}


def test_training_resumes(trained, tiny_config, run_tool, tmp_path):
    work_dir = shutil.copytree(trained, tmp_path / 'run')
    printed = run_tool(
        'tools/train.py',
        tiny_config,
        '--work-dir',
        work_dir,
        '--resume',
        '--cfg-options',
        'train_cfg.max_epochs=2',
    )
    assert 'Epoch(train) [2][2/2]' in printed
    assert 'Epoch(train) [1]' not in printed
    assert (work_dir / 'epoch_2.pth').is_file()


def test_two_processes_train_and_test_on_the_cpu(
    tiny_config, run_tool, free_port, tmp_path
):
    trained = run_tool(
        'tools/dist_train.sh',
        tiny_config,
        2,
        '--work-dir',
        tmp_path,
        PORT=free_port,
    )
    # Eight images, in batches of four, on two processes.
    assert 'Epoch(train) [1][1/1]' in trained
    tested = run_tool(
        'tools/dist_test.sh',
        tiny_config,
        tmp_path / 'epoch_1.pth',
        2,
        '--work-dir',
        tmp_path,
        PORT=free_port,
    )

    def accuracy(printed):
        return printed.rpartition('accuracy/top1: ')[2].split()[0]

    assert accuracy(trained) == accuracy(tested)


@pytest.mark.parametrize(
    'name', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh']
)
def test_launchers_say_how_they_are_used(name, run_tool):
    assert f'{name} ' in run_tool(f'tools/{name}', code=2)


def test_mixed_precision_is_bfloat16_on_the_cpu(cfg, merge_args, monkeypatch):
    monkeypatch.setitem(merge_args.__globals__, 'get_device', lambda: 'cpu')
    merge_args(cfg, arguments(amp=True))
    assert cfg.optim_wrapper.type == 'mmcakd.BF16OptimWrapper'


def test_mixed_precision_scales_losses_on_accelerators(
    cfg, merge_args, monkeypatch
):
    monkeypatch.setitem(merge_args.__globals__, 'get_device', lambda: 'cuda')
    merge_args(cfg, arguments(amp=True))
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'


def test_work_dir_comes_from_argument_then_config_then_name(cfg, merge_args):
    merge_args(cfg, arguments())
    assert cfg.work_dir == 'work_dirs/some_name'
    cfg.work_dir = 'own'
    merge_args(cfg, arguments())
    assert cfg.work_dir == 'own'
    merge_args(cfg, arguments(work_dir='given'))
    assert cfg.work_dir == 'given'


def test_resume_takes_the_latest_or_a_given_checkpoint(cfg, merge_args):
    merge_args(cfg, arguments(resume='auto'))
    assert cfg.resume and cfg.load_from is None
    merge_args(cfg, arguments(resume='some.pth'))
    assert cfg.resume and cfg.load_from == 'some.pth'


def test_options_override_the_config(cfg, merge_args):
    merge_args(cfg, arguments(cfg_options={'train_cfg.max_epochs': 7}))
    assert cfg.train_cfg.max_epochs == 7


def test_loaders_with_workers_keep_them(cfg, merge_args):
    options = {'train_dataloader.num_workers': 2}
    merge_args(cfg, arguments(cfg_options=options))
    assert cfg.train_dataloader.persistent_workers
    assert not cfg.val_dataloader.persistent_workers


@pytest.mark.parametrize(
    ('scope', 'collate'),
    [('mmpretrain', dict(type='default_collate')), ('mmdet', None)],
)
def test_images_that_differ_in_size_are_not_stacked_by_the_loader(
    cfg, merge_args, scope, collate
):
    cfg.default_scope = scope
    merge_args(cfg, arguments())
    assert cfg.train_dataloader.get('collate_fn') == collate


def test_validation_can_be_left_out(cfg, merge_args):
    merge_args(cfg, arguments(no_validate=True))
    assert cfg.val_dataloader is None and cfg.val_evaluator is None


def test_scaling_the_rate_needs_a_base_batch_size(cfg, merge_args):
    with pytest.raises(ValueError, match='base_batch_size'):
        merge_args(cfg, arguments(auto_scale_lr=True))
    cfg.auto_scale_lr = dict(base_batch_size=256)
    merge_args(cfg, arguments(auto_scale_lr=True))
    assert cfg.auto_scale_lr.enable


def test_any_config_gets_the_hooks_that_keep_a_run_safe(merge_args, cfg):
    del cfg.default_hooks['seed']
    merge_args(cfg, arguments(max_hours=2.0, epochs=7))
    assert cfg.default_hooks.seed.type == 'mmcakd.SeedByEpochHook'
    assert cfg.default_hooks.non_finite.type == 'mmcakd.NonFiniteHook'
    assert cfg.default_hooks.stop.max_hours == 2.0
    assert cfg.train_cfg.max_epochs == 7
