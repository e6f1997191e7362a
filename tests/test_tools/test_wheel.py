import os
import re
import shlex
import shutil
import subprocess
import sys
from email import message_from_string
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mmcakd
from mmcakd.stacks import STACKS

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


def build(source: Path, kind: str, target: Path) -> Path:
    """Build a wheel or an sdist as pip would, without a network."""
    script = (
        'import sys\nfrom setuptools import build_meta\n'
        f'print(build_meta.build_{kind}(sys.argv[1]))'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script, target],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    return target / done.stdout.splitlines()[-1]


def copy_source(source: Path) -> Path:
    source.mkdir()
    for name in SOURCES:
        if (REPO / name).is_dir():
            ignored = shutil.ignore_patterns('.mim', '__pycache__')
            shutil.copytree(REPO / name, source / name, ignore=ignored)
        else:
            shutil.copy(REPO / name, source / name)
    return source


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> tuple[Path, Path]:
    """A wheel, and an sdist."""
    root = tmp_path_factory.mktemp('wheel')
    source = copy_source(root / 'source')
    return build(source, 'wheel', root), build(source, 'sdist', root)


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory) -> Path:
    """A folder with mmcakd as its wheel installs it."""
    site = tmp_path_factory.mktemp('site')
    pip('install', '--no-deps', '--no-index', '-t', site, built[0])
    return site


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


def test_wheel_of_the_sdist_is_the_wheel_of_the_checkout(built, tmp_path):
    wheel, sdist = built
    shutil.unpack_archive(sdist, tmp_path, filter='data')
    (source,) = tmp_path.iterdir()
    assert (source / 'LICENSE').is_file()
    assert (source / 'CHANGELOG.md').is_file()
    # Neither what was built before, nor anything of a checkout's own.
    assert not (source / 'mmcakd' / '.mim').exists()
    assert not list(source.rglob('__pycache__'))
    again = build(source, 'wheel', tmp_path)

    def contents(path):
        with ZipFile(path) as file:
            # RECORD lists the others; SOURCES.txt is no part of a wheel.
            names = [n for n in file.namelist() if not n.endswith('RECORD')]
            return {name: file.read(name) for name in names}

    assert contents(again) == contents(wheel)


def metadata(installed: Path) -> Message:
    (path,) = installed.glob('mmcakd-*.dist-info/METADATA')
    return message_from_string(path.read_text('utf-8'))


def test_metadata_are_ready_for_an_index(installed):
    told = metadata(installed)
    assert told['Version'] == mmcakd.__version__
    assert told['License'] == 'Apache-2.0'
    assert told['Description-Content-Type'] == 'text/markdown'
    assert (installed / f'mmcakd-{mmcakd.__version__}.dist-info').is_dir()
    versions = {
        line.rpartition(' ')[2]
        for line in told.get_all('Classifier')
        if ':: 3.' in line
    }
    assert versions == {'3.11', '3.12'}
    assert told['Requires-Python'] == '>=3.11'


def requirements(installed: Path, extra: str) -> dict[str, SpecifierSet]:
    found = map(Requirement, metadata(installed).get_all('Requires-Dist'))
    return {
        each.name: each.specifier
        for each in found
        if (each.marker and each.marker.evaluate(dict(extra=extra)))
    }


def test_nothing_of_openmmlab_comes_without_an_extra(installed):
    always = [
        each.name
        for each in map(
            Requirement, metadata(installed).get_all('Requires-Dist')
        )
        if not each.marker
    ]
    assert 'torch' in always and 'packaging' in always
    assert not [n for n in always if n.startswith(('mm', 'onedl'))]


@pytest.mark.parametrize(
    ('extra', 'stack'),
    [('lite', 'classic'), ('classic', 'classic'), ('onedl', 'onedl')],
)
def test_extra_of_a_stack_has_the_windows_that_are_checked(
    installed, extra, stack
):
    found = requirements(installed, extra)
    ours = {n: found[n] for n in found if n.startswith(('mm', 'onedl'))}
    assert ours == {
        name: SpecifierSet(window) for name, window in STACKS[stack].items()
    }


@pytest.mark.parametrize('extra', ['full', 'downstream'])
def test_full_mmcv_comes_without_the_light_one(installed, extra):
    found = requirements(installed, extra)
    assert 'mmcv' in found and 'mmcv-lite' not in found
    window = STACKS['classic']['mmcv-lite'].partition(',')[2]
    assert window in str(found['mmcv'])


def test_readme_names_every_extra(installed):
    text = (REPO / 'README.md').read_text('utf-8')
    table = text.partition('| extra | has |')[2].partition('\n\n')[0]
    named = set()
    for row in table.splitlines():
        named |= set(re.findall(r'`(\w+)`', row.partition(' | ')[0]))
    assert named == set(metadata(installed).get_all('Provides-Extra'))


def test_readme_installs_nothing_by_name(installed):
    """It is in no index yet: whoever took the name could be installed."""
    text = (REPO / 'README.md').read_text('utf-8')
    lines = [line for line in text.splitlines() if 'pip install' in line]
    assert len(lines) > 3
    extras = set(metadata(installed).get_all('Provides-Extra'))
    for line in lines:
        for word in shlex.split(line, comments=True):
            assert not re.fullmatch(r'mmcakd(\[\w+\])?([=<>~].*)?', word)
        assert set(re.findall(r'\[(\w+)\]', line)) <= extras


def test_git_address_of_the_readme_is_a_requirement():
    text = (REPO / 'README.md').read_text('utf-8')
    (line,) = re.findall(r'pip install "(mmcakd.*?)"', text)
    requirement = Requirement(line)
    assert requirement.name == 'mmcakd' and requirement.extras == {'lite'}
    assert requirement.url.startswith('git+https://')
