import numpy as np

from mmcakd.datasets import (
    CLASSES,
    PIXEL_CLASSES,
    RenderedObject,
    Scene,
    index_mask,
    render_scene,
)


def test_a_pixel_has_the_class_of_the_object_it_shows():
    for index in range(60):
        scene = render_scene(index, 'val')
        masks = np.stack([obj.mask for obj in scene.objects])
        names = np.array(
            ['background', *(CLASSES[obj.label] for obj in scene.objects)]
        )
        shown = np.concatenate([~masks.any(0)[None], masks]).argmax(0)

        mask = index_mask(scene)
        assert mask.dtype == np.uint8
        assert np.array_equal(np.array(PIXEL_CLASSES)[mask - 1], names[shown])


def test_every_pixel_is_labelled_and_the_background_is_a_class():
    size = 8
    objects = []
    for label in range(len(CLASSES)):
        mask = np.zeros((size, size), dtype=bool)
        y, x = divmod(label, size)
        mask[y, x] = True
        objects.append(RenderedObject(label, mask, (x, y, x + 1, y + 1)))
    image = np.zeros((size, size, 3), dtype=np.uint8)

    mask = index_mask(Scene(image, 0, objects)).ravel()
    assert mask[:24].tolist() == list(range(2, 26))
    assert (mask[24:] == 1).all()


def test_classes_are_the_background_and_the_shapes_in_order():
    assert PIXEL_CLASSES[0] == 'background'
    assert PIXEL_CLASSES[1:] == CLASSES
