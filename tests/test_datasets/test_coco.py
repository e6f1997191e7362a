import json

import numpy as np
import pytest

from mmcakd.datasets import (
    CLASSES,
    MIN_VISIBLE,
    RenderedObject,
    Scene,
    coco_annotations,
    coco_file_name,
    coco_instances,
    decode_mask,
    encode_mask,
    render_scene,
)
from mmcakd.datasets.rendered import _OUTLINES


def read_runs(code):
    """Pixel by pixel, down the columns, as the format says."""
    height, width = code['size']
    mask = np.zeros((height, width), dtype=bool)
    place, on = 0, False
    for count in code['counts']:
        for pixel in range(place, place + count):
            mask[pixel % height, pixel // height] = on
        place, on = place + count, not on
    assert place == height * width
    return mask


def rectangle(height, width, label=0, size=64):
    mask = np.zeros((size, size), dtype=bool)
    mask[3 : 3 + height, 5 : 5 + width] = True
    return RenderedObject(label, mask, (5, 3, 5 + width, 3 + height))


@pytest.mark.parametrize(
    ('rows', 'counts'),
    [
        ([[0, 1], [0, 1]], [2, 2]),
        ([[1, 0], [1, 0]], [0, 2, 2]),
        ([[1, 1], [0, 0]], [0, 1, 1, 1, 1]),
        ([[0, 0, 0], [0, 0, 0]], [6]),
        ([[1, 1, 1], [1, 1, 1]], [0, 6]),
    ],
)
def test_runs_go_down_the_columns_and_start_with_pixels_off(rows, counts):
    mask = np.array(rows, dtype=bool)
    code = encode_mask(mask)
    assert code == {'size': list(mask.shape), 'counts': counts}
    assert np.array_equal(decode_mask(code), mask)


@pytest.mark.parametrize('shape', [(1, 1), (7, 5), (5, 7), (64, 64)])
def test_masks_come_back_exactly(shape):
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.98):
        mask = rng.random(shape) < share
        code = encode_mask(mask)
        assert np.array_equal(read_runs(code), mask)
        assert np.array_equal(decode_mask(code), mask)


def test_annotations_say_what_the_scene_shows():
    for index in range(60):
        scene = render_scene(index, 'val')
        shown = [o for o in scene.objects if o.mask.mean() >= MIN_VISIBLE]
        annotations = coco_annotations(scene)
        assert annotations[0]['category_id'] == scene.label + 1
        for obj, annotation in zip(shown, annotations, strict=True):
            mask = read_runs(annotation['segmentation'])
            assert np.array_equal(mask, obj.mask)
            assert annotation['area'] == mask.sum()
            assert annotation['iscrowd'] == 0
            assert annotation['category_id'] == obj.label + 1

            x, y, width, height = annotation['bbox']
            rows, columns = mask.nonzero()
            assert (x, x + width - 1) == (columns.min(), columns.max())
            assert (y, y + height - 1) == (rows.min(), rows.max())


def test_a_sliver_is_clutter():
    scene = Scene(
        np.zeros((64, 64, 3), dtype=np.uint8),
        7,
        [rectangle(20, 30, 7), rectangle(4, 4, 8), rectangle(5, 3, 9)],
    )
    assert [a['area'] for a in coco_annotations(scene)] == [600, 16]


def test_no_object_in_full_view_is_a_sliver():
    smallest = 0.09  # radius, as a fraction of the image
    for outline in _OUTLINES.values():
        x, y = smallest * outline.T
        area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
        assert area > 2 * MIN_VISIBLE


def test_the_file_numbers_objects_from_one_and_lists_every_image():
    images = [
        (4, coco_annotations(render_scene(4))),
        (9, []),
        (0, coco_annotations(render_scene(0))),
    ]
    content = coco_instances(images, size=64)
    assert json.loads(json.dumps(content)) == content

    assert [c['name'] for c in content['categories']] == list(CLASSES)
    assert [c['id'] for c in content['categories']] == list(range(1, 25))
    assert [image['id'] for image in content['images']] == [4, 9, 0]
    assert content['images'][0] == {
        'id': 4,
        'file_name': '000000000004.png',
        'height': 64,
        'width': 64,
    }
    annotations = content['annotations']
    assert [a['id'] for a in annotations] == [*range(1, len(annotations) + 1)]
    assert {a['image_id'] for a in annotations} == {4, 0}
    assert 'id' not in images[0][1][0]


def test_file_names_are_ids_in_twelve_digits():
    assert coco_file_name(22) == '000000000022.png'


def test_pycocotools_reads_the_masks_as_they_are():
    mask_api = pytest.importorskip(
        'pycocotools.mask', reason='pycocotools is not installed'
    )
    for index in range(24):
        for annotation in coco_annotations(render_scene(index, 'val')):
            code = annotation['segmentation']
            packed = mask_api.frPyObjects(code, *code['size'])
            mask = read_runs(code)
            assert np.array_equal(mask_api.decode(packed), mask)
            assert mask_api.area(packed) == annotation['area']
            assert mask_api.toBbox(packed).tolist() == annotation['bbox']
