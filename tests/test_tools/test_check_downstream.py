import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

TOOL = Path(__file__).resolve().parents[2] / 'tools/check_downstream.py'


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location('check_downstream', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def operators(monkeypatch):
    """Operators that stand in for those of mmcv."""
    stand_ins = SimpleNamespace()
    monkeypatch.setitem(sys.modules, 'mmcv.ops', stand_ins)
    return stand_ins


def test_light_mmcv_is_told_with_its_cure(tool, monkeypatch):
    monkeypatch.setattr(tool, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match=r'bash tools/setup_downstream\.sh'):
        tool.main()


@pytest.mark.parametrize('ignored', [0.0, 0.1])
def test_wrong_nms_is_told(tool, operators, ignored):
    def nms(boxes, scores, iou_threshold):
        x, y, right, bottom = boxes.unbind(1)
        area = (right - x) * (bottom - y)
        kept = []
        for i in scores.argsort(descending=True).tolist():
            width = right.minimum(right[i]) - x.maximum(x[i])
            height = bottom.minimum(bottom[i]) - y.maximum(y[i])
            both = width.clamp(min=0) * height.clamp(min=0)
            iou = both / (area + area[i] - both) - ignored
            if all(iou[j] <= iou_threshold for j in kept):
                kept.append(i)
        return None, torch.tensor(kept)

    operators.nms = nms
    if ignored:
        with pytest.raises(AssertionError, match='nms keeps'):
            tool.check_nms('cpu')
    else:
        tool.check_nms('cpu')


@pytest.mark.parametrize('shift', [0.0, 0.5])
def test_wrong_roi_align_is_told(tool, operators, shift):
    def roi_align(image, boxes, size):
        # Sampled at the centres of the bins, in units of half the image.
        left, top, right, bottom = boxes[0, 1:].tolist()
        height, width = image.shape[-2:]
        steps = torch.tensor([0.25, 0.75])
        x = (left + (right - left) * steps + shift) / width * 2 - 1
        y = (top + (bottom - top) * steps) / height * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing='xy'), -1)
        return F.grid_sample(image, grid[None], align_corners=False)

    operators.roi_align = roi_align
    if shift:
        with pytest.raises(AssertionError, match='not close'):
            tool.check_roi_align('cpu')
    else:
        tool.check_roi_align('cpu')


@pytest.mark.parametrize('masked', [True, False])
def test_wrong_deform_conv_is_told(tool, operators, masked):
    def deform_conv(image, offset, mask, weight, *arguments):
        return F.conv2d(image, weight, padding=1) * (0.5 if masked else 1)

    operators.modulated_deform_conv2d = deform_conv
    if masked:
        tool.check_deform_conv('cpu')
    else:
        with pytest.raises(AssertionError, match='not close'):
            tool.check_deform_conv('cpu')


def test_full_mmcv_works_with_both_projects(run_tool):
    if importlib.util.find_spec('mmcv._ext') is None:
        pytest.skip('mmcv has no compiled operators here (mmcv-lite)')
    assert 'work with torch' in run_tool('tools/check_downstream.py')
