"""From a distillation to a detector and a segmentor, by the tools alone."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmcakd.utils import load_backbone, read_downstream_config

REPO = Path(__file__).resolve().parents[2]
CONFIGS = REPO / 'configs/downstream/shapes'
DETECTOR = CONFIGS / 'retinanet_resnet_coco.py'
SEGMENTOR = CONFIGS / 'fcn_resnet_ade20k.py'


@pytest.fixture(scope='module')
def run_here(run_tool):
    """Run a tool where its configs find what they name."""
    return partial(run_tool, cwd=REPO)


@pytest.fixture(scope='module')
def data(run_here, operators, tmp_path_factory):
    """Twenty-four rendered images to train on, and 12 to evaluate on."""
    root = tmp_path_factory.mktemp('data')
    for layout in ('imagenet', 'coco', 'ade20k'):
        run_here(
            'tools/dataset_converters/render_shapes.py',
            root / layout,
            *('--layout', layout, '--num-train', 24, '--num-val', 12),
            *('--workers', 1),
        )
    return root


@pytest.fixture(scope='module')
def distilled(run_here, data, tmp_path_factory):
    """Work directory of a distillation of two steps."""
    work_dir = tmp_path_factory.mktemp('distilled')
    run_here(
        'tools/train.py',
        REPO / 'configs/shapes/kd/vit_resnet.py',
        *('--work-dir', work_dir, '--no-validate', '--epochs', 1),
        '--cfg-options',
        f'train_dataloader.dataset.data_root={data}/imagenet',
        'train_dataloader.batch_size=12',
        'default_hooks.checkpoint.interval=1',
    )
    return work_dir


@pytest.fixture(scope='module')
def options(data):
    """Settings of two steps in which the backbone alone stands still."""
    common = [
        'train_dataloader.batch_size=12',
        'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult=0',
        'default_hooks.logger.interval=1',
        # A warm-up longer than training is refused.
        'param_scheduler.0.end=1',
    ]
    return {
        DETECTOR: common
        + [
            f'train_dataloader.dataset.data_root={data}/coco/',
            f'val_dataloader.dataset.data_root={data}/coco/',
            'val_evaluator.ann_file='
            f'{data}/coco/annotations/instances_val2017.json',
            'train_cfg.max_epochs=1',
            'train_cfg.val_interval=1',
            'default_hooks.checkpoint.interval=1',
            # After two steps nothing is more likely than that.
            'model.test_cfg.score_thr=0',
        ],
        SEGMENTOR: common
        + [
            f'train_dataloader.dataset.data_root={data}/ade20k',
            f'val_dataloader.dataset.data_root={data}/ade20k',
            'train_cfg.max_iters=2',
            'train_cfg.val_interval=2',
            'default_hooks.checkpoint.interval=2',
        ],
    }


def arguments(config, student, work_dir, options, *more) -> list:
    given = ['--student', student, '--work-dir', work_dir, *more]
    return [config, *given, '--cfg-options', *options[config]]


@pytest.fixture(scope='module')
def detected(run_here, distilled, options, tmp_path_factory):
    """A detector on the student, and one on a backbone from scratch."""
    work_dir = tmp_path_factory.mktemp('detected') / 'runs'
    given = arguments(
        DETECTOR, distilled, work_dir, options, '--baseline', 'none'
    )
    return work_dir, given, run_here('tools/downstream.py', *given)


def check_backbone(trained: Path, student: Path) -> None:
    """All parameters of the backbone are the student's, to the bit."""
    found, expected = (
        torch.load(path)['state_dict'] for path in (trained, student)
    )
    kept = [
        key
        for key in expected
        if key.startswith('backbone.')
        and not key.endswith(
            ('running_mean', 'running_var', 'num_batches_tracked')
        )
    ]
    assert len(kept) == 63
    for key in kept:
        assert torch.equal(found[key], expected[key]), key


def test_a_detector_is_trained_on_the_student(detected, distilled):
    work_dir, _, printed = detected
    assert printed.count('Epoch(train) [1][2/2]') == 2
    assert printed.count("126 weights of the backbone are the student's") == 1
    checkpoint = work_dir / 'student/seed0/epoch_1.pth'
    check_backbone(checkpoint, distilled / 'student.pth')
    report = (work_dir / 'report.md').read_text()
    assert report.splitlines()[2] == '|  | AP box | AP50 box |'
    assert '| student - scratch |' in report
    found = json.loads((work_dir / 'results.json').read_text())
    assert [run['name'] for run in found['runs']] == ['scratch', 'student']
    for run in found['runs']:
        assert 0 <= run['metrics']['coco/bbox_mAP'] <= 1
    assert {'mmdet', 'mmcv'} <= found['versions'].keys()


def test_finished_detectors_are_not_repeated(run_here, detected):
    _, given, _ = detected
    printed = run_here('tools/downstream.py', *given)
    assert printed.count('finished already') == 2
    assert 'Epoch(train)' not in printed
    assert 'student - scratch' in printed


def read_panels(path: Path, rows: int, columns: int) -> np.ndarray:
    """Cut a picture into its panels, a frame and labels left out."""
    pixels = np.asarray(Image.open(path).convert('RGB'))
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    panels = pixels[: rows * height, : columns * width]
    panels = panels.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    return panels[:, :, height // 8 : -height // 8, width // 6 : -width // 8]


def test_what_detectors_see_is_drawn(run_here, detected, tmp_path):
    work_dir, *_ = detected
    tool, out = (
        'tools/analysis_tools/draw_predictions.py',
        tmp_path / 'seen.png',
    )
    options = (work_dir, '--images', 0, 5, '--out', out)
    printed = run_here(tool, *options, '--score-thr', 2)
    assert f'{out}: the truth, scratch, student' in printed
    truth, scratch, student = read_panels(out, 3, 2)
    # Without any object all see the image alone.
    assert (scratch == student).mean() > 0.99
    assert (truth != student).mean() > 0.01
    run_here(tool, *options, '--score-thr', 0)
    _, scratch, student = read_panels(out, 3, 2)
    assert (scratch != student).mean() > 0.05

    for wrong, problem in (
        (('--images', 3, 12), '[12]: the evaluation has 12'),
        (('--seed', 1), 'has no seed 1, but [0]'),
    ):
        printed = run_here(tool, work_dir, *wrong, code=1)
        assert problem in printed
    printed = run_here(tool, tmp_path, code=1)
    assert 'has no results.json' in printed


def test_a_segmentor_is_trained_on_the_student(
    run_here, distilled, options, tmp_path
):
    given = arguments(SEGMENTOR, distilled, tmp_path / 'runs', options)
    printed = run_here('tools/downstream.py', *given)
    assert 'Iter(train) [2/2]' in printed
    checkpoint = tmp_path / 'runs/student/seed0/iter_2.pth'
    check_backbone(checkpoint, distilled / 'student.pth')
    found = json.loads((tmp_path / 'runs/results.json').read_text())
    (run,) = found['runs']
    assert {'mIoU', 'aAcc'} <= run['metrics'].keys()
    report = (tmp_path / 'runs/report.md').read_text()
    assert report.splitlines()[2] == '|  | mIoU | aAcc |'
    run_here('tools/analysis_tools/draw_predictions.py', tmp_path / 'runs')
    truth, student = read_panels(tmp_path / 'runs/predictions.png', 2, 4)
    assert (truth != student).mean() > 0.05


def test_two_processes_train_a_detector_on_the_cpu(
    run_here, free_port, distilled, options, tmp_path
):
    config, *given = arguments(DETECTOR, distilled, tmp_path / 'runs', options)
    printed = run_here(
        'tools/dist_train.sh',
        *(config, 2, *given),
        'train_dataloader.batch_size=6',
        TOOL='downstream.py',
        PORT=free_port,
    )
    assert printed.count('Epoch(train) [1][2/2]') == 1
    checkpoint = tmp_path / 'runs/student/seed0/epoch_1.pth'
    check_backbone(checkpoint, distilled / 'student.pth')


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR])
def test_a_student_of_another_family_stops_before_training(
    run_here, config, options, tmp_path
):
    wrong = REPO / 'demo/vit-micro_shapes.pth'
    given = arguments(config, wrong, tmp_path / 'runs', options)
    printed = run_here('tools/downstream.py', *given, code=1)
    assert f'{wrong} does not fit model.backbone' in printed
    assert 'unexpected' in printed and 'ResNet_CIFAR(' in printed
    assert not (tmp_path / 'runs').exists()


def test_the_examples_of_the_document_take_a_student(exported, tmp_path):
    text = (REPO / 'docs/downstream.md').read_text()
    examples = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        path = tmp_path / 'example.py'
        path.write_text(example)
        cfg = read_downstream_config(path)
        assert len(load_backbone(cfg, exported('resnet50')).weights) == 318
