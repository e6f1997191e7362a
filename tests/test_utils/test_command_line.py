"""What a user reads when a command fails."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.registry import Registry

from mmcakd.utils.command_line import Command, describe_error

REPO = Path(__file__).resolve().parents[2]
PARTS = Registry('part')


@PARTS.register_module()
class Inner:
    def __init__(self, error: Exception) -> None:
        raise error


@PARTS.register_module()
class Outer:
    def __init__(self, inner: dict) -> None:
        self.inner = PARTS.build(inner)


def run(error: Exception | None, capsys, before=lambda command: None):
    with Command() as command:
        before(command)
        if error is not None:
            raise error
    return capsys.readouterr()


@pytest.mark.parametrize(
    'error',
    [
        OSError('the disk is full'),
        ValueError('the disk is full'),
        TypeError('the disk is full'),
        KeyError('the disk is full'),
        RuntimeError('the disk is full'),
        ImportError('the disk is full'),
        AssertionError('the disk is full'),
    ],
)
def test_an_error_is_one_sentence(error, capsys):
    with pytest.raises(SystemExit) as caught:
        run(error, capsys)
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[0] == 'error: the disk is full'
    assert 'MMCAKD_TRACEBACK=1' in printed.err
    assert 'Traceback' not in printed.err and not printed.out


def test_other_processes_than_the_first_say_which(capsys, monkeypatch):
    monkeypatch.setenv('RANK', '3')
    with pytest.raises(SystemExit):
        run(ValueError('the disk is full'), capsys)
    err = capsys.readouterr().err
    assert err.startswith('error on process 3: the disk is full')


def test_what_is_fine_says_nothing(capsys):
    assert run(None, capsys) == ('', '')


@pytest.mark.parametrize('error', [SystemExit(3), KeyboardInterrupt()])
def test_exits_pass(error, capsys):
    with pytest.raises(type(error)):
        run(error, capsys)
    assert capsys.readouterr() == ('', '')


def test_traceback_is_shown_if_it_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv('MMCAKD_TRACEBACK', '1')
    with pytest.raises(ValueError, match='too small'):
        run(ValueError('too small'), capsys)


def test_error_of_a_training_that_has_begun_is_shown_whole(capsys):
    hooks = []
    runner = SimpleNamespace(register_hook=hooks.append)
    error = ValueError('the loss is nan')
    with pytest.raises(SystemExit):
        run(error, capsys, lambda command: command.trains(runner))
    with pytest.raises(ValueError, match='is nan'):
        run(
            error,
            capsys,
            lambda command: (
                command.trains(runner),
                hooks[-1].after_train_iter(runner, 0),
            ),
        )


@pytest.mark.parametrize(
    'error',
    [
        ValueError('no head fits'),
        KeyError('no head fits'),
        # MMEngine fails to make another one of it.
        UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'invalid start byte'),
    ],
)
def test_wrapping_of_the_registry_is_left_out(error):
    cfg = dict(type='Outer', inner=dict(type='Inner', error=error))
    with pytest.raises(Exception) as caught:
        PARTS.build(cfg)
    said = 'no head fits' if error.args[0] == 'no head fits' else str(error)
    assert describe_error(caught.value) == said


def test_own_sentence_of_the_registry_is_kept():
    with pytest.raises(KeyError) as caught:
        PARTS.build(dict(type='NoSuchPart'))
    assert 'NoSuchPart is not in the' in describe_error(caught.value)


@pytest.mark.parametrize('error', [KeyError('model'), EOFError()])
def test_a_word_is_told_with_type_and_place(error):
    with pytest.raises(type(error)) as caught:
        raise error
    said = describe_error(caught.value)
    assert said.startswith(type(error).__name__)
    assert Path(__file__).name in said


def test_every_python_tool_tells_its_errors_in_one_sentence():
    tools = [*REPO.glob('tools/**/*.py'), *REPO.glob('demo/*.py')]
    assert len(tools) > 10
    without = [
        str(path.relative_to(REPO))
        for path in tools
        if 'with Command()' not in path.read_text()
    ]
    # The second may have to run without this package.
    assert set(without) <= {'tools/train.py', 'tools/foreign_tests/run.py'}


def test_missing_teacher_ends_in_a_few_lines(tmp_path):
    config = tmp_path / 'kd.py'
    config.write_text(
        f'_base_ = {str(REPO / "configs/quickstart/kd.py")!r}\n'
        "model = dict(teacher_ckpt='nowhere/vit.pth')\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            REPO / 'tools/analysis_tools/dry_run.py',
            config,
            '--load-teacher',
        ],
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    assert done.returncode == 1
    assert 'there is no checkpoint at nowhere/vit.pth' in done.stderr
    assert 'Traceback' not in done.stderr
    assert 'class `' not in done.stderr
