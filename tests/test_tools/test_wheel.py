import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SOURCES = (
    'setup.py',
    'pyproject.toml',
    'MANIFEST.in',
    'LICENSE',
    'README.md',
    'CHANGELOG.md',
    'requirements',
    'mmcakd',
    'configs',
    'tools',
    'demo',
    'model-index.yml',
)


def pip(*arguments) -> None:
    subprocess.run(
        [sys.executable, '-m', 'pip', '-q', *map(str, arguments)], check=True
    )


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """A folder with mmcakd as its wheel installs it."""
    root = tmp_path_factory.mktemp('wheel')
    source = root / 'source'
    source.mkdir()
    for name in SOURCES:
        if (REPO / name).is_dir():
            ignored = shutil.ignore_patterns('.mim', '__pycache__')
            shutil.copytree(REPO / name, source / name, ignore=ignored)
        else:
            shutil.copy(REPO / name, source / name)
    offline = ['--no-deps', '--no-index', '--no-build-isolation']
    pip('wheel', *offline, '-w', root, source)
    (wheel,) = root.glob('mmcakd-*.whl')
    pip('install', '--no-deps', '--no-index', '-t', root / 'site', wheel)
    return root / 'site'


def test_wheel_carries_configs_and_tools_where_openmmlab_looks(installed):
    mim = installed / 'mmcakd' / '.mim'
    for path in (
        'model-index.yml',
        'configs/scalekd/swin-l_resnet50_in1k.py',
        'configs/scalekd/metafile.yml',
        'configs/baselines/metafile.yml',
        'configs/ofakd/metafile.yml',
        'configs/cakd/metafile.yml',
        'configs/quickstart/scalekd.py',
        'tools/train.py',
        'tools/dist_train.sh',
        'tools/model_converters/export_student.py',
    ):
        assert (mim / path).is_file(), path
    # These make a virtual environment in a checkout.
    assert not list(mim.glob('tools/setup_*.sh'))
    assert {path.name for path in installed.iterdir()} == {
        'mmcakd',
        next(installed.glob('mmcakd-*.dist-info')).name,
    }


def test_wheel_trains_outside_the_repository(
    installed, tiny_config, run_tool, tmp_path
):
    run_tool(
        installed / 'mmcakd/.mim/tools/train.py',
        tiny_config,
        '--work-dir',
        tmp_path / 'run',
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert (tmp_path / 'run' / 'student.pth').is_file()


def test_configs_of_the_wheel_are_found_by_name(installed, tmp_path):
    config = tmp_path / 'own.py'
    config.write_text("_base_ = 'mmcakd::scalekd/swin-l_resnet50_in1k.py'")
    script = (
        'import mmcakd; print(mmcakd.__file__)\n'
        'from mmengine.config import Config\n'
        f'print(Config.fromfile({str(config)!r}).model.type)'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script],
        env=os.environ | dict(PYTHONPATH=str(installed)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imported, model = done.stdout.split()
    assert Path(imported).is_relative_to(installed)
    assert model == 'mmcakd.CrossArchDistill'
