import subprocess
import sys
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


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason='not in a venv')
def test_ready_environment_is_reused(tmp_path):
    if not Path(sys.prefix, '.mmcakd-stamp').is_file():
        pytest.skip('this environment was not made by setup_env.sh')
    done = source(MMCAKD_VENV=sys.prefix)
    assert done.stdout == 'went on\n', done.stderr
