"""Which packages mmcakd is imported beside, and what it says of others."""

import os
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from mmcakd import stacks

ROOT = Path(stacks.__file__).parents[1]
CLASSIC = dict(mmengine='0.10.7', mmpretrain='1.2.0', mmrazor='1.0.0')
CLASSIC = {**CLASSIC, 'mmcv-lite': '2.1.0'}
ONEDL = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmpretrain': '1.3.6',
    'mmrazor': '1.0.0',
}
BOTH = pytest.mark.parametrize(
    ('stack', 'releases'), [('classic', CLASSIC), ('onedl', ONEDL)]
)


@pytest.fixture
def pretend(monkeypatch):
    """Pretend that these distributions are installed, and nothing else."""

    def install(releases, torch='2.13.0+cpu', metadata=True):
        packages = {stacks.import_name(n): v for n, v in releases.items()}
        packages['torch'] = torch

        def version(name):
            if not metadata or name not in releases:
                raise PackageNotFoundError(name)
            return releases[name]

        monkeypatch.setattr(stacks, 'version', version)
        monkeypatch.setattr(stacks, 'find_version', packages.get)

    return install


def refusal() -> str:
    with pytest.raises(ImportError) as caught:
        stacks.check_versions()
    return str(caught.value)


def test_what_is_installed_here_is_supported():
    stacks.check_versions()


@BOTH
def test_stack_is_told_by_versions(pretend, stack, releases):
    pretend(releases)
    stacks.check_versions()
    assert stacks.find_stack() == stack


@BOTH
def test_packages_on_the_path_need_no_metadata(pretend, stack, releases):
    pretend(releases, metadata=False)
    stacks.check_versions()
    assert stacks.find_stack() == stack


def test_full_mmcv_will_do_as_well(pretend):
    releases = {**CLASSIC, 'mmcv': '2.1.0'}
    del releases['mmcv-lite']
    pretend(releases)
    stacks.check_versions()


@BOTH
@pytest.mark.parametrize('found', ['0.0.1', '99.0'])
def test_release_outside_its_window_is_named_with_its_cure(
    pretend, stack, releases, found
):
    for name in releases:
        pretend({**releases, name: found})
        window = stacks.STACKS[stack][name]
        message = refusal()
        assert f'in its {stack} stack, but {found} is installed' in message
        assert message.endswith(f'pip install "{name}{window}"')


@BOTH
def test_missing_package_is_named_with_its_cure(pretend, stack, releases):
    for name in releases:
        pretend({key: v for key, v in releases.items() if key != name})
        message = refusal()
        assert 'which is not installed' in message
        assert message.endswith(
            f'pip install "{name}{stacks.STACKS[stack][name]}"'
        )


def test_nothing_of_openmmlab_is_told_as_the_default_stack(pretend):
    pretend({})
    assert 'pip install "mmengine>=' in refusal()


@pytest.mark.parametrize('package', ['mmengine', 'mmcv', 'mmpretrain'])
def test_package_of_the_other_stack_is_named(pretend, package):
    other = {stacks.import_name(name): v for name, v in ONEDL.items()}
    if package == 'mmengine':
        # Within the windows of both stacks: what it is called tells nothing.
        releases = {**CLASSIC, package: other[package]}
        pretend(releases)
        stacks.check_versions()
        return
    releases = dict(CLASSIC)
    name = 'mmcv-lite' if package == 'mmcv' else package
    releases[name] = other[package]
    pretend(releases)
    assert f'mmcakd needs {package} ' in refusal()


@pytest.mark.parametrize(
    ('first', 'second', 'package'),
    [
        ('mmengine', 'onedl-mmengine', 'mmengine'),
        ('mmpretrain', 'onedl-mmpretrain', 'mmpretrain'),
        ('mmcv-lite', 'onedl-mmcv', 'mmcv'),
        ('mmcv', 'onedl-mmcv', 'mmcv'),
        ('mmcv', 'mmcv-lite', 'mmcv'),
    ],
)
def test_two_that_write_the_same_folder_are_refused(
    pretend, first, second, package
):
    there = {n: v for n, v in CLASSIC.items() if package not in n}
    pretend({**there, first: '2.1.0', second: '2.1.0'})
    message = refusal()
    assert f'{first} and {second} are both installed' in message
    assert f'folder, {package},' in message
    line = message.partition('pip uninstall -y ')[2].partition(',')[0]
    assert {first, second, *there} == set(line.split())


@pytest.mark.parametrize('torch', ['2.13.0+cpu', '2.6.0+cu124', '2.15.3'])
def test_how_torch_was_built_does_not_matter(pretend, torch):
    pretend(CLASSIC, torch)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        stacks.check_versions()


@pytest.mark.parametrize('torch', ['2.16.0', '2.16.0.dev2027+cu130', '3.0'])
def test_newer_torch_is_warned_of(pretend, torch):
    pretend(CLASSIC, torch)
    with pytest.warns(UserWarning, match=f'not with {torch[:4]}'):
        stacks.check_versions()


@pytest.mark.parametrize('torch', ['1.13.1', '2.5.1+cpu', '2.6.0rc1'])
def test_older_torch_is_refused(pretend, torch):
    pretend(CLASSIC, torch)
    message = refusal()
    assert f'not with {torch}' in message and '"torch>=2.6,<2.16"' in message


def test_missing_torch_is_told(pretend):
    pretend(CLASSIC, None)
    assert 'torch >=2.6,<2.16, which is not installed' in refusal()


def test_release_candidate_of_the_next_one_is_outside():
    # MMEngine's main reads what it cannot read safely by unpickling it.
    window = stacks.STACKS['classic']['mmengine']
    assert not stacks.is_within('0.11.0rc0', window)
    assert stacks.is_within('0.10.7', window)


def test_version_is_read_without_an_import(tmp_path, monkeypatch):
    package = tmp_path / 'a_package_that_fails'
    package.mkdir()
    (package / '__init__.py').write_text('raise AssertionError')
    (package / 'version.py').write_text("__version__ = '1.2.3'")
    monkeypatch.syspath_prepend(tmp_path)
    assert stacks.find_version('a_package_that_fails') == '1.2.3'
    assert stacks.find_version('a_package_that_is_not_there') is None


def test_import_without_openmmlab_tells_what_to_install(tmp_path):
    """Also where the first import of all would fail."""
    blocked = ('mmengine', 'mmcv', 'mmpretrain', 'mmrazor')
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys\n'
        'from importlib.machinery import PathFinder\n'
        'find = PathFinder.find_spec\n'
        'PathFinder.find_spec = classmethod(lambda cls, name, *rest:\n'
        f'    None if name in {blocked} else find(name, *rest))\n'
        'import mmcakd\n'
    )
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith('ImportError: mmcakd needs mmengine >=0.10.')
    assert 'pip install "' in last
