"""What is drawn over an image; whole runs are drawn in test_downstream."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image

TOOL = Path(__file__).parents[2] / 'tools/analysis_tools/draw_predictions.py'


@pytest.fixture(scope='module')
def tool():
    return runpy.run_path(str(TOOL))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    Image.new('RGB', (40, 30), 'white').save(path)
    return BaseDataElement(metainfo=dict(img_path=str(path)))


@pytest.fixture
def axes():
    return Figure().subplots()


@pytest.fixture
def objects():
    masks = torch.zeros(3, 30, 40, dtype=torch.bool)
    masks[:, 5:15, 10:30] = True
    return InstanceData(
        bboxes=torch.tensor([[10.0, 5.0, 30.0, 15.0]] * 3),
        labels=torch.tensor([1, 0, 1]),
        scores=torch.tensor([0.9, 0.4, 0.1]),
        masks=masks,
    )


def test_objects_above_the_threshold_have_box_name_and_outline(
    tool, image, axes, objects
):
    image.pred_instances = objects
    tool['Painter'](['nut', 'bolt'], 0.3).draw(axes, image, 'pred')
    assert [text.get_text() for text in axes.texts] == ['bolt', 'nut']
    for box in axes.patches:
        assert box.get_bbox().extents.tolist() == [10, 5, 30, 15]
    bolt, nut = (tuple(box.get_edgecolor()) for box in axes.patches)
    assert bolt != nut
    assert len(axes.collections) == 2
    outline = axes.collections[0].get_paths()[0].vertices
    assert outline.min(0).tolist() == [9.5, 4.5]
    assert outline.max(0).tolist() == [29.5, 14.5]


def test_the_truth_has_no_scores(tool, image, axes, objects):
    for key in ('scores', 'masks'):
        objects.pop(key)
    image.gt_instances = objects
    tool['Painter'](['nut', 'bolt'], 0.3).draw(axes, image, 'gt')
    assert len(axes.patches) == 3 and not axes.collections


def test_pixels_have_colours_but_for_background_and_unknown(tool, image, axes):
    classes = torch.zeros(1, 30, 40, dtype=torch.long)
    classes[0, :10] = 1
    classes[0, 10:20] = 2
    classes[0, 29] = 255
    image.pred_sem_seg = PixelData(data=classes)
    painter = tool['Painter'](['background', 'nut', 'bolt'], 0.3)
    painter.draw(axes, image, 'pred')
    shown, overlay = (np.asarray(drawn.get_array()) for drawn in axes.images)
    assert shown.shape == (30, 40, 3) and (shown == 255).all()
    assert (overlay[20:, :, 3] == 0).all()
    for rows, label in ((slice(0, 10), 1), (slice(10, 20), 2)):
        assert (overlay[rows, :, 3] == 0.6).all()
        assert np.array_equal(overlay[rows][0, 0, :3], painter.colours[label])
    assert len(np.unique(painter.colours, axis=0)) == 3
