import numpy as np
import pytest

from mmcakd.datasets.rendered import CLASSES, SPLITS, render_scene


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
