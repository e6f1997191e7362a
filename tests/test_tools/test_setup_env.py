import subprocess
from pathlib import Path

import pytest

SETUP_ENV = Path(__file__).resolve().parents[2] / 'tools/setup_env.sh'


def source(**environment) -> subprocess.CompletedProcess:
    """Source the script as the others do, with nothing else set."""
    return subprocess.run(
        ['bash', '-c', f'set -e; source {SETUP_ENV}; echo went on'],
        env=dict(PATH='/usr/bin:/bin') | environment,
        capture_output=True,
        text=True,
    )


def test_folder_that_is_no_environment_is_left_alone(tmp_path):
    precious = tmp_path / 'precious'
    precious.touch()
    done = source(MMCAKD_VENV=str(tmp_path))
    assert done.returncode == 1 and 'went on' not in done.stdout
    assert 'is no virtual environment' in done.stderr
    assert precious.exists()


def test_unfit_python_is_named(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\nexit 1\n')
    python.chmod(0o755)
    done = source(MMCAKD_PYTHON=str(python), MMCAKD_VENV=str(tmp_path / 'v'))
    assert done.returncode == 1
    assert f'none of these is one: {python}' in done.stderr
    assert not (tmp_path / 'v').exists()


def test_environment_of_another_python_is_left_alone(tmp_path):
    bin_dir = tmp_path / 'v' / 'bin'
    bin_dir.mkdir(parents=True)
    (tmp_path / 'v' / 'pyvenv.cfg').touch()
    python = bin_dir / 'python'
    # Runs, but is neither 3.11 nor 3.12.
    python.write_text(
        '#!/bin/sh\n'
        'case "$*" in *version_info*) exit 1;; --version) echo Python 3.9.0;;'
        ' esac\n'
    )
    python.chmod(0o755)
    done = source(MMCAKD_VENV=str(tmp_path / 'v'))
    assert done.returncode == 1
    assert 'has Python 3.9.0' in done.stderr
    assert python.exists()


def test_python_without_venv_is_told(tmp_path):
    python = tmp_path / 'python'
    python.write_text(
        '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexit 0\n'
    )
    python.chmod(0o755)
    done = source(MMCAKD_PYTHON=str(python), MMCAKD_VENV=str(tmp_path / 'v'))
    assert done.returncode == 1
    assert 'has no venv module' in done.stderr


@pytest.fixture
def environment(tmp_path):
    """A virtual environment whose python only notes what it is asked."""
    python = tmp_path / 'v' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\n'
        f'echo "$*" >> {tmp_path}/asked\n'
        'case "$*" in\n'
        '*hashlib*) cat > /dev/null; echo stamp;;\n'
        f'*install*) test ! -e {tmp_path}/offline;;\n'
        'esac\n'
    )
    python.chmod(0o755)
    (tmp_path / 'v-onedl').symlink_to('v')
    return tmp_path


def installs(environment) -> int:
    lines = (environment / 'asked').read_text().splitlines()
    return sum(' install ' in line for line in lines)


def test_second_call_installs_nothing(environment):
    venv = str(environment / 'v')
    assert source(MMCAKD_VENV=venv).stdout.endswith('went on\n')
    first = installs(environment)
    assert first > 0
    assert source(MMCAKD_VENV=venv).stdout == 'went on\n'
    assert installs(environment) == first


def test_half_made_environment_is_finished_later(environment):
    venv = str(environment / 'v')
    (environment / 'offline').touch()
    done = source(MMCAKD_VENV=venv)
    assert done.returncode == 1 and 'did not finish' in done.stderr
    (environment / 'offline').unlink()
    assert source(MMCAKD_VENV=venv).stdout.endswith('went on\n')


@pytest.mark.parametrize('full_mmcv', [False, True])
def test_light_mmcv_is_never_put_over_the_full_one(environment, full_mmcv):
    python = environment / 'v' / 'bin' / 'python'
    answer = '*version*mmcv*) %s;;' % ('exit 0' if full_mmcv else 'exit 1')
    lines = python.read_text().replace('esac', f'{answer}\nesac')
    python.write_text(lines)
    assert source(MMCAKD_VENV=str(environment / 'v')).returncode == 0
    asked = (environment / 'asked').read_text()
    assert 'requirements/runtime.txt' in asked
    assert ('requirements/lite.txt' in asked) is not full_mmcv


def test_stamp_is_of_what_is_installed_here(environment):
    python = environment / 'v' / 'bin' / 'python'
    hashed = environment / 'hashed'
    lines = python.read_text().replace('cat > /dev/null', f'cat > {hashed}')
    python.write_text(lines)
    assert source(MMCAKD_VENV=str(environment / 'v')).returncode == 0
    for name in ('classic', 'lite', 'optional', 'runtime', 'tests'):
        assert requirements(name) in hashed.read_text()
    for line in requirements('constraints').splitlines():
        assert line in hashed.read_text()
    # setup_downstream.sh installs these, and has a stamp of its own.
    assert requirements('downstream') not in hashed.read_text()
    assert requirements('onedl') not in hashed.read_text()


def requirements(name: str) -> str:
    return (SETUP_ENV.parents[1] / f'requirements/{name}.txt').read_text()


def test_other_stack_is_installed_alone(environment):
    venv = environment / 'v'
    done = source(MMCAKD_VENV=str(venv), MMCAKD_STACK='onedl')
    assert done.returncode == 0, done.stderr
    asked = (environment / 'asked').read_text()
    assert 'requirements/onedl.txt' in asked
    assert 'classic.txt' not in asked and 'lite.txt' not in asked


@pytest.mark.parametrize('stack', ['classic', 'onedl'])
def test_first_pin_of_a_package_counts(environment, stack):
    venv = environment / 'v'
    source(MMCAKD_VENV=str(venv), MMCAKD_STACK=stack)
    pins = (venv / 'mmcakd-constraints.txt').read_text().splitlines()
    names = [line.partition('==')[0] for line in pins if line[0] != '#']
    assert len(names) == len(set(names)) and 'torch' in names
    (numpy,) = (line for line in pins if line.startswith('numpy=='))
    assert numpy.startswith(f'numpy=={1 if stack == "classic" else 2}.')
    assert ('onedl-mmcv' in names) is (stack == 'onedl')


def test_unknown_stack_is_named(tmp_path):
    done = source(MMCAKD_STACK='modern', MMCAKD_VENV=str(tmp_path / 'v'))
    assert done.returncode == 1 and not (tmp_path / 'v').exists()
    assert 'the stack is classic or onedl, not modern' in done.stderr
