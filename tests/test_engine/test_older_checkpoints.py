"""Checkpoints that version 0.1 wrote are resumed and exported by this one."""

import gzip
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain import get_model

from mmcakd.utils import export_student

FOLDER = Path(__file__).parents[1] / 'before_0_2'
EXPECTED = json.loads((FOLDER / 'expected.json').read_text())

every_method = pytest.mark.parametrize('method', EXPECTED)


@pytest.fixture(scope='module')
def make():
    spec = importlib.util.spec_from_file_location('make', FOLDER / 'make.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def files(make, tmp_path_factory) -> Path:
    """The folder of the runs, with the images that they were trained on."""
    root = tmp_path_factory.mktemp('before_0_2')
    make.make_images(root / 'images')
    for path in FOLDER.glob('*.gz'):
        (root / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return root


def read(path: Path) -> dict:
    return torch.load(path, map_location='cpu', weights_only=False)


def test_every_method_has_a_checkpoint(make):
    found = {path.name.split('.')[0] for path in FOLDER.glob('*.gz')}
    assert {name for name in found if 'teacher' not in name} == set(EXPECTED)
    assert set(EXPECTED) == set(make.METHODS)


@every_method
def test_resumed_run_ends_like_the_one_that_wrote_it(
    method, files, make, tmp_path, monkeypatch
):
    # The paths in its config are relative.
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    before = read(files / f'{method}.pth')
    cfg = Config.fromstring(before['meta']['cfg'], '.py')
    cfg.update(resume=True, load_from=f'{method}.pth', work_dir='resumed')
    Runner.from_cfg(cfg).train()

    after = read(Path('resumed', 'epoch_2.pth'))
    change = make.describe_change(before['state_dict'], after['state_dict'])
    for what, values in EXPECTED[method].items():
        # Another processor rounds otherwise.
        assert change[what] == pytest.approx(values, rel=1e-4, abs=1e-5), what
    for key in ('optimizer', 'param_schedulers', 'ema_state_dict'):
        assert (key in after) == (key in before)


@every_method
def test_student_is_exported(method, files, tmp_path):
    source = shutil.copy(files / f'{method}.pth', tmp_path)
    out = export_student(source, tmp_path / 'student.pth')
    student = get_model(str(out.with_suffix('.py')), pretrained=str(out))
    weights = {
        key.removeprefix('architecture.'): value
        for key, value in read(source)['state_dict'].items()
        if key.startswith('architecture.')
    }
    assert student.state_dict().keys() == weights.keys()
    for key, value in student.state_dict().items():
        assert torch.equal(value, weights[key]), key
