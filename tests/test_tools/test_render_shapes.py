import contextlib
import io
import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from mmcakd.datasets import (
    CLASSES,
    PIXEL_CLASSES,
    coco_annotations,
    decode_mask,
    index_mask,
    render_scene,
)

TOOL = Path(__file__).parents[2] / 'tools/dataset_converters/render_shapes.py'
LAYOUTS = ('imagenet', 'coco', 'ade20k')


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


def read_image(path):
    return np.array(Image.open(path))


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """The same scenes in every layout."""
    root = tmp_path_factory.mktemp('data')
    for layout in LAYOUTS:
        done = render_set(root / layout, '--layout', layout)
        assert not done.failed, done.said
    return root


def test_class_folders_hold_what_the_renderer_draws(sets):
    files = sorted((sets / 'imagenet').glob('*/*/*.png'))
    assert len(files) == 48 + 24
    for path in files[::7]:
        split, name = path.parts[-3:-1]
        scene = render_scene(int(path.stem), split, size=32)
        assert CLASSES[scene.label] == name
        assert np.array_equal(read_image(path), scene.image)
    for split in ('train', 'val'):
        folders = (sets / 'imagenet' / split).iterdir()
        assert sorted(path.name for path in folders) == list(CLASSES)


def test_class_folders_are_the_default_and_written_as_ever(sets, tmp_path):
    assert not render_set(tmp_path / 'shapes').failed
    written = contents(tmp_path / 'shapes')
    assert written == contents(sets / 'imagenet')

    path = Path('val/striped_star/000022.png')
    pixels = render_scene(22, 'val', size=32).image
    expected = io.BytesIO()
    Image.fromarray(pixels).save(expected, format='PNG', compress_level=1)
    assert written[path] == expected.getvalue()
    manifest = dict(
        renderer_version=1,
        num_train=48,
        num_val=24,
        seed=0,
        size=32,
        classes=list(CLASSES),
    )
    expected = json.dumps(manifest, indent=2) + '\n'
    assert written[Path('manifest.json')].decode() == expected


@pytest.mark.parametrize(
    ('layout', 'train', 'val'),
    [
        ('coco', 'train2017/{:012d}.png', 'val2017/{:012d}.png'),
        (
            'ade20k',
            'images/training/{:08d}.png',
            'images/validation/{:08d}.png',
        ),
    ],
)
def test_the_images_are_the_same_in_every_layout(sets, layout, train, val):
    written = contents(sets / layout)
    for path, pixels in contents(sets / 'imagenet').items():
        if path.suffix == '.png':
            name = dict(train=train, val=val)[path.parts[0]]
            assert written.pop(Path(name.format(int(path.stem)))) == pixels
    rest = {path.parts[0] for path in written}
    assert rest == {'annotations', 'manifest.json'}


@pytest.mark.parametrize('split', ['train', 'val'])
def test_coco_files_list_the_objects_of_each_image(sets, split):
    root = sets / 'coco'
    content = json.loads(
        (root / f'annotations/instances_{split}2017.json').read_text()
    )
    names = [image['file_name'] for image in content['images']]
    folder = root / f'{split}2017'
    assert names == sorted(path.name for path in folder.iterdir())

    for image in content['images']:
        assert image['file_name'] == f'{image["id"]:012d}.png'
        pixels = read_image(folder / image['file_name'])
        assert pixels.shape == (image['height'], image['width'], 3)
        found = [
            {k: v for k, v in a.items() if k not in ('id', 'image_id')}
            for a in content['annotations']
            if a['image_id'] == image['id']
        ]
        scene = render_scene(image['id'], split, size=32)
        assert found == coco_annotations(scene)
    numbers = [a['id'] for a in content['annotations']]
    assert numbers == list(range(1, len(numbers) + 1))


def test_pycocotools_reads_the_coco_files(sets):
    coco_api = pytest.importorskip(
        'pycocotools.coco', reason='pycocotools is not installed'
    )
    coco = coco_api.COCO(sets / 'coco/annotations/instances_val2017.json')
    assert coco.getCatIds(catNms=list(CLASSES)) == list(range(1, 25))
    assert len(coco.getImgIds()) == 24
    for index in coco.getImgIds():
        objects = coco_annotations(render_scene(index, 'val', size=32))
        found = coco.loadAnns(coco.getAnnIds(imgIds=[index]))
        for annotation, expected in zip(found, objects, strict=True):
            assert np.array_equal(
                coco.annToMask(annotation),
                decode_mask(expected['segmentation']),
            )


@pytest.mark.parametrize(
    ('split', 'folder'), [('train', 'training'), ('val', 'validation')]
)
def test_ade20k_has_a_mask_for_each_image(sets, split, folder):
    root = sets / 'ade20k'
    images = sorted((root / 'images' / folder).iterdir())
    masks = sorted((root / 'annotations' / folder).iterdir())
    assert [p.name for p in images] == [p.name for p in masks]
    for path in masks:
        scene = render_scene(int(path.stem), split, size=32)
        mask = Image.open(path)
        assert mask.mode == 'L'
        assert np.array_equal(np.array(mask), index_mask(scene))


@pytest.mark.parametrize(
    ('layout', 'classes'),
    [
        ('imagenet', CLASSES),
        ('coco', CLASSES),
        ('ade20k', PIXEL_CLASSES),
    ],
)
def test_manifests_name_the_classes(sets, layout, classes):
    manifest = json.loads((sets / layout / 'manifest.json').read_text())
    assert manifest['classes'] == list(classes)


@pytest.mark.parametrize('layout', ['coco', 'ade20k'])
def test_a_set_does_not_depend_on_the_number_of_workers(
    sets, layout, tmp_path
):
    alone = tmp_path / 'shapes'
    assert not render_set(alone, '--layout', layout, '--workers', '1').failed
    assert contents(alone) == contents(sets / layout)


def test_nothing_is_left_beside_a_set(sets):
    assert sorted(p.name for p in sets.iterdir()) == sorted(LAYOUTS)


@pytest.mark.parametrize(
    ('layout', 'lost', 'files'),
    [
        ('imagenet', [f'train/{CLASSES[3]}'], 2),
        ('coco', ['train2017/000000000007.png'], 1),
        ('coco', ['annotations', 'val2017/000000000003.png'], 3),
        ('ade20k', ['annotations/training', 'images/training'], 96),
        ('ade20k', ['annotations/validation/00000005.png'], 1),
    ],
)
def test_a_second_run_reuses_the_set_and_puts_back_what_is_missing(
    sets, tmp_path, layout, lost, files
):
    copy = tmp_path / 'shapes'
    shutil.copytree(sets / layout, copy)
    before = contents(copy)

    for path in map(copy.joinpath, lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    mended = render_set(copy, '--layout', layout)
    assert not mended.failed and f'back {files} missing' in mended.said
    assert contents(copy) == before

    stamps = {path: path.stat().st_mtime_ns for path in copy.rglob('*')}
    again = render_set(copy, '--layout', layout)
    assert not again.failed and 'complete already' in again.said
    assert stamps == {p: p.stat().st_mtime_ns for p in copy.rglob('*')}


def test_a_set_of_other_scenes_is_left_alone(sets):
    before = contents(sets / 'imagenet')
    other = render_set(sets / 'imagenet', '--seed', '1')
    assert other.failed
    assert 'seed is 0, asked for 1' in other.said
    assert 'delete' in other.said
    assert contents(sets / 'imagenet') == before


@pytest.mark.parametrize(
    ('found', 'asked'), itertools.permutations(LAYOUTS, 2)
)
def test_a_set_in_another_layout_is_left_alone(sets, found, asked):
    before = contents(sets / found)
    refused = render_set(sets / found, '--layout', asked)
    assert refused.failed
    assert f'layout is {found}, asked for {asked}' in refused.said
    assert contents(sets / found) == before


@pytest.mark.parametrize('manifest', [None, '{"seed": 0,', '["shapes"]'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_folder_with_something_else_is_left_alone(
    tmp_path, layout, manifest
):
    foreign = tmp_path / 'mine'
    foreign.mkdir()
    (foreign / 'notes.txt').write_text('mine')
    if manifest is not None:
        (foreign / 'manifest.json').write_text(manifest)
    before = contents(foreign)
    refused = render_set(foreign, '--layout', layout)
    assert refused.failed
    assert 'not a rendered set' in refused.said
    assert contents(foreign) == before


def test_the_preview_names_every_class(sets, tmp_path):
    sheet = tmp_path / 'figures' / 'sheet.png'
    done = render_set(sets / 'imagenet', '--preview', str(sheet))
    assert not done.failed, done.said
    assert Image.open(sheet).size[0] > 6 * 128


@pytest.mark.parametrize('layout', ['coco', 'ade20k'])
def test_the_preview_colours_the_labels_alone(sets, tmp_path, layout):
    sheet = tmp_path / 'sheet.png'
    done = render_set(
        sets / layout, '--layout', layout, '--preview', str(sheet)
    )
    assert not done.failed, done.said
    tile = read_image(sheet)[8 : 8 + 128, 8 : 8 + 128]
    coloured = (tile != tile[..., :1]).any(-1)

    scene = render_scene(0, 'val', size=32)
    expected = index_mask(scene) > 1
    if layout == 'coco':
        objects = coco_annotations(scene)
        masks = [decode_mask(o['segmentation']) for o in objects]
        expected = np.any(masks, axis=0)
    expected = np.kron(expected, np.ones((4, 4), dtype=bool))
    if layout == 'coco':
        for x, y, width, height in (o['bbox'] for o in objects):
            top, left = 4 * y, 4 * x
            bottom, right = top + 4 * height - 1, left + 4 * width - 1
            expected[[top, bottom], left : right + 1] = True
            expected[top : bottom + 1, [left, right]] = True
    assert np.array_equal(coloured, expected)


@pytest.mark.parametrize(
    'options',
    [
        ('--num-train', '0'),
        ('--size', '8'),
        ('--seed', '-1'),
        ('--workers', 'two'),
        ('--layout', 'voc'),
    ],
)
def test_bad_arguments_are_named(options, tmp_path):
    done = render_set(tmp_path / 'shapes', *options)
    assert done.failed and options[0] in done.said
    assert not (tmp_path / 'shapes').exists()


def test_what_a_killed_rendering_left_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    names = {
        f'.set.{process.pid}.partial': False,
        f'.set.{os.getppid()}.partial': True,
        f'.other.{process.pid}.partial': True,
    }
    for name in names:
        (tmp_path / name / 'train').mkdir(parents=True)
    render_set(tmp_path / 'set', '--num-train', '1', '--num-val', '1')
    for name, stays in names.items():
        assert (tmp_path / name).exists() == stays, name
