"""Suites of other packages: what is known to fail, and what is new."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'foreign_tests' / 'run.py'

SUITE = """
import sys
from pathlib import Path

import pytest


def test_passes():
    # It is imported first, and the suite may write beside itself.
    assert 'mmcakd' in sys.modules
    Path('tests/written').touch()


def test_fails_as_known():
    assert 1 == 2


def test_was_mended():
    pass


@pytest.mark.skip(reason='no reason')
def test_is_skipped():
    pass


@pytest.fixture
def broken():
    yield
    raise OSError


def test_fails_while_it_tidies_up(broken):
    pass
"""
KNOWN = """
# needs a GPU
tests/test_a.py::test_fails_as_known
tests/test_a.py::test_was_mended

# needs a package that is not there
tests/part/test_b.py
"""


@pytest.fixture(scope='module')
def tool():
    spec = spec_from_file_location('foreign_tests', TOOL)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def suite(tmp_path) -> Path:
    """A suite of which one test passes, and a list that knows of two."""
    folder = tmp_path / 'checkout' / 'tests'
    (folder / 'part').mkdir(parents=True)
    (folder / 'test_a.py').write_text(SUITE)
    (folder / 'part' / 'test_b.py').write_text('import a_package_of_nobody')
    (tmp_path / 'known.txt').write_text(KNOWN)
    return folder


def test_new_failure_is_told_and_ends_with_an_error(suite, run_tool, tmp_path):
    printed = run_tool(
        TOOL,
        'mmrazor',
        *('--tests', suite, '--known', tmp_path / 'known.txt'),
        code=1,
        cwd=tmp_path,
    )
    _, _, summary = printed.partition('mmrazor on torch ')
    assert ', mmrazor 1.' in summary
    counts = {
        cells[1].strip(): cells[2].strip()
        for line in summary.splitlines()
        if len(cells := line.split('│')) == 4
    }
    assert counts == {
        'passed': '2',
        'skipped': '1',
        'failed as known: needs a GPU': '1',
        'failed as known: needs a package that is not there': '1',
        'NEW FAILURE': '1',
    }
    mended, new = summary.split('Known to fail, but passed:')[1].split('NEW')
    assert mended.split() == ['tests/test_a.py::test_was_mended']
    assert new.split()[1:] == [
        'tests/test_a.py::test_fails_while_it_tidies_up'
    ]
    assert not (suite / 'written').exists()


def test_known_failures_are_no_error(suite, run_tool, tmp_path):
    printed = run_tool(
        TOOL,
        'a_package_of_nobody',
        *('--tests', suite, '--known', tmp_path / 'known.txt'),
        *('--without-mmcakd', 'tests/test_a.py', '-k', 'known or mended'),
    )
    assert 'failed as known: needs a GPU' in printed
    assert 'needs a package' not in printed.partition('nobody on')[2]


def test_each_failure_counts_once(tool):
    known = {'a': 'needs a GPU', 'b': 'needs a GPU', 'c': 'downloads'}
    outcomes = dict(a='failed', b='failed', c='passed', d='failed', e='passed')
    counts, new, mended = tool.compare(outcomes, known)
    assert counts == {
        'failed as known: needs a GPU': 2,
        'passed': 2,
        'NEW FAILURE': 1,
    }
    assert (new, mended) == (['d'], ['c'])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('tests/test_a.py', 'line 1: tests/test_a.py has no reason'),
        ('# why\na\n\n# else\na', 'line 5: a is listed twice'),
    ],
)
def test_list_with_a_fault_is_refused(tool, tmp_path, text, message):
    (tmp_path / 'known.txt').write_text(text)
    with pytest.raises(ValueError, match=message):
        tool.read_known(tmp_path / 'known.txt')


def test_every_listed_test_has_a_reason(tool):
    known = tool.read_known(TOOL.with_name('mmrazor.txt'))
    assert known
    assert all(test.startswith('tests/') for test in known)


def test_package_without_tests_asks_for_a_checkout(tool, tmp_path):
    with pytest.raises(FileNotFoundError, match='mmpretrain is installed wit'):
        tool.copy_tests('mmpretrain', None, tmp_path)
    with pytest.raises(FileNotFoundError, match='holds no test_'):
        tool.copy_tests('mmpretrain', tmp_path, tmp_path / 'copy')


def test_installed_tests_are_those_of_the_package_alone(tool, tmp_path):
    tool.copy_tests('mmrazor', None, tmp_path)
    assert (tmp_path / 'tests' / 'test_models' / '__init__.py').is_file()
    # Another package's, in the same folder of the environment.
    assert not (tmp_path / 'tests' / 'test_markdown.py').exists()
