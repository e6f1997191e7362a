import contextlib
import io
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from mmcakd.datasets.rendered import CLASSES, SPLITS, render_scene

TOOL = Path(__file__).parents[2] / 'tools/dataset_converters/render_shapes.py'


def render_set(out, *options):
    """Run the tool as the command line does; errors as they would be seen."""
    argv = [TOOL, out, '--workers', 2, '--num-train', 48, '--num-val', 24]
    argv = [*map(str, argv), '--size', '32', *options]
    said, status = io.StringIO(), None
    with (
        mock.patch.object(sys, 'argv', argv),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as stop:
            status = stop.code
    if isinstance(status, str):
        return SimpleNamespace(failed=True, said=status)
    return SimpleNamespace(failed=bool(status), said=said.getvalue())


def contents(root):
    return {
        path.relative_to(root): path.read_bytes()
        for path in root.rglob('*')
        if path.is_file()
    }


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'shapes'
    done = render_set(out)
    assert not done.failed, done.said
    return out


def test_a_scene_depends_on_seed_split_and_index_alone():
    forward = [render_scene(i).image for i in range(6)]
    backward = [render_scene(i).image for i in reversed(range(6))][::-1]
    assert np.array_equal(forward, backward)

    images = [
        render_scene(0, split, seed).image.tobytes()
        for split in SPLITS
        for seed in (0, 1)
    ]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize('size', [16, 48, 96])
def test_any_size_can_be_rendered(size):
    scene = render_scene(7, size=size)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    x1, y1, x2, y2 = scene.objects[0].box
    assert 0.3 * size < max(x2 - x1, y2 - y1) < size


def test_classes_are_balanced_and_in_the_order_of_class_folders():
    labels = [render_scene(i, size=16).label for i in range(2 * len(CLASSES))]
    assert np.array_equal(np.bincount(labels), [2] * len(CLASSES))
    assert list(CLASSES) == sorted(CLASSES)
    assert len(set(CLASSES)) == len(CLASSES) >= 20


def test_masks_and_boxes_agree_and_do_not_overlap():
    for index in range(100):
        scene = render_scene(index, 'val')
        assert scene.objects[0].label == scene.label
        for obj in scene.objects:
            x1, y1, x2, y2 = obj.box
            assert obj.mask[y1:y2, x1:x2].sum() == obj.mask.sum() > 0
            assert obj.mask[y1:y2, x1:x2].any(0)[[0, -1]].all()
            assert obj.mask[y1:y2, x1:x2].any(1)[[0, -1]].all()
        masks = np.stack([obj.mask for obj in scene.objects])
        assert masks.sum(0).max() == 1
        assert masks[0].sum() == masks.sum((1, 2)).max()


def test_the_mask_lies_on_the_object():
    index = CLASSES.index('plain_square')
    scene = render_scene(index)
    inside = scene.image[scene.objects[0].mask].astype(float)
    assert (inside.std(0) < 25).all()


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'test'.*train"):
        render_scene(0, split='test')


def test_the_tool_writes_what_the_renderer_draws(shapes):
    files = sorted(shapes.glob('*/*/*.png'))
    assert len(files) == 48 + 24
    for path in files[::7]:
        split, name = path.parts[-3:-1]
        scene = render_scene(int(path.stem), split, size=32)
        assert CLASSES[scene.label] == name
        assert np.array_equal(np.array(Image.open(path)), scene.image)
    for split in ('train', 'val'):
        assert sorted(p.name for p in (shapes / split).iterdir()) == list(
            CLASSES
        )
    assert [p.name for p in shapes.parent.iterdir()] == ['shapes']


def test_a_second_run_reuses_the_set_and_puts_back_what_is_missing(
    shapes, tmp_path
):
    copy = tmp_path / 'shapes'
    shutil.copytree(shapes, copy)
    before = contents(copy)

    shutil.rmtree(copy / 'train' / CLASSES[3])
    mended = render_set(copy)
    assert not mended.failed and '2 missing' in mended.said
    assert contents(copy) == before

    stamps = {path: path.stat().st_mtime_ns for path in copy.rglob('*')}
    again = render_set(copy)
    assert not again.failed and 'complete already' in again.said
    assert stamps == {p: p.stat().st_mtime_ns for p in copy.rglob('*')}


def test_a_folder_with_something_else_is_left_alone(shapes, tmp_path):
    other = render_set(shapes, '--seed', '1')
    assert other.failed
    assert 'seed is 0, asked for 1' in other.said
    assert 'delete' in other.said

    foreign = tmp_path / 'mine'
    foreign.mkdir()
    (foreign / 'manifest.json').write_text('{"seed": 0,')
    before = contents(foreign)
    refused = render_set(foreign)
    assert refused.failed
    assert 'not a rendered set' in refused.said
    assert contents(foreign) == before


def test_the_preview_names_every_class(shapes, tmp_path):
    sheet = tmp_path / 'figures' / 'sheet.png'
    done = render_set(shapes, '--preview', str(sheet))
    assert not done.failed, done.said
    assert Image.open(sheet).size[0] > 6 * 128


@pytest.mark.parametrize(
    'options',
    [
        ('--num-train', '0'),
        ('--size', '8'),
        ('--seed', '-1'),
        ('--workers', 'two'),
    ],
)
def test_bad_arguments_are_named(options, tmp_path):
    done = render_set(tmp_path / 'shapes', *options)
    assert done.failed and options[0] in done.said
    assert not (tmp_path / 'shapes').exists()
