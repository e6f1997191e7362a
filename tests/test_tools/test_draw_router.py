"""Drawing the matrix of a router."""

import importlib.util
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

from mmcakd.models.losses import RouterLoss

REPO = Path(__file__).resolve().parents[2]
TOOL = 'tools/analysis_tools/draw_router.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('draw_router', REPO / TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path):
    """The checkpoint of a run with these routers."""

    def save(**routers) -> Path:
        state_dict = {'architecture.fc.weight': torch.zeros(2, 2)}
        for name, router in routers.items():
            prefix = f'distiller.distill_losses.{name}.'
            state_dict |= router.state_dict(prefix=prefix)
        path = tmp_path / 'epoch_1.pth'
        torch.save(dict(state_dict=state_dict, meta={}), path)
        return path

    return save


def test_weights_are_those_of_the_loss(tool, checkpoint):
    router = RouterLoss(10, 2, 3)
    torch.nn.init.normal_(router.routes)
    routers = tool.read_routers(str(checkpoint(loss_router=router)))
    assert list(routers) == ['loss_router']
    torch.testing.assert_close(routers['loss_router'], router.weights)


def test_picture_and_strongest_pair(
    tool, checkpoint, tmp_path, monkeypatch, capsys
):
    first, second = RouterLoss(10, 2, 3), RouterLoss(10)
    with torch.no_grad():
        first.routes[1, 2] = 3.0
        second.routes[0, 1] = 2.0
    out = tmp_path / 'new' / 'router.png'
    path = checkpoint(loss_a=first, loss_b=second)
    monkeypatch.setattr(sys, 'argv', [TOOL, str(path), '--out', str(out)])
    tool.main()
    printed = capsys.readouterr().out
    share = first.weights.max().item()
    assert f'loss_a: most ({share:.2f}) from teacher layer 2 to ' in printed
    assert 'student layer 3\n' in printed
    assert 'from teacher layer 1 to student layer 2\n' in printed
    picture = matplotlib.image.imread(out)
    assert picture.shape[1] > picture.shape[0]
    assert picture[..., :3].std() > 0.1


def test_the_numbers_are_in_the_picture(tool):
    weights = torch.tensor([[0.7, 0.1], [0.05, 0.15]])
    figure = tool.draw(dict(loss_router=weights))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ['0.70', '0.10', '0.05', '0.15']
    assert figure.axes[0].get_xlabel() == 'student layer'
    assert figure.axes[0].get_ylabel() == 'teacher layer'


def test_a_checkpoint_without_a_router_is_told(tool, checkpoint):
    with pytest.raises(SystemExit, match='no router.*RouterLoss'):
        tool.read_routers(str(checkpoint()))
