"""Run MMRazor's or MMPretrain's own tests with mmcakd imported first.

    python tools/foreign_tests/run.py mmrazor
    python tools/foreign_tests/run.py mmpretrain --tests CHECKOUT/tests
    python tools/foreign_tests/run.py mmrazor tests/test_models -k distill

What is known to fail, and why, stands in SUITE.txt beside this file, if there
is one; a failure that does not is new and makes the exit code 1. Arguments
that are not described below are pytest's, with paths as in the suite.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

LISTS = Path(__file__).parent
STACK = (
    'torch',
    'mmengine',
    'mmcv',
    'mmcv-lite',
    'mmpretrain',
    'mmrazor',
    'mmdet',
)


def copy_tests(suite: str, source: Path | None, folder: Path) -> None:
    """Copy a suite, which may write beside itself, to ``folder/tests``.

    Raises:
        FileNotFoundError: There are no tests.
    """
    if source is not None:
        if not any(source.rglob('test_*.py')):
            raise FileNotFoundError(
                f'{source} holds no test_*.py; --tests is the folder `tests` '
                f'of a checkout of {suite}'
            )
        shutil.copytree(source, folder / 'tests')
        return
    # Wheels of several packages put their tests into one folder.
    own = [
        file
        for file in files(suite) or ()
        if file.parts[0] == 'tests' and file.suffix != '.pyc'
    ]
    if not own:
        raise FileNotFoundError(
            f'{suite} is installed without its tests; name those of a '
            'checkout of the same version: --tests CHECKOUT/tests'
        )
    for file in own:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.locate(), folder / file)


def read_known(path: Path) -> dict[str, str]:
    """Read which tests fail, and why.

    Returns:
        dict[str, str]: Reason by test, or by file if it cannot be imported.

    Raises:
        ValueError: A test stands below no reason, or twice.
    """
    known: dict[str, str] = {}
    reason = ''
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith('#'):
            reason = line.lstrip('# ')
        elif line.strip():
            if not reason or line in known:
                wrong = 'is listed twice' if reason else 'has no reason'
                raise ValueError(f'{path}, line {number}: {line} {wrong}')
            known[line] = reason
    return known


class Outcomes:
    """A pytest plugin that remembers how each test ended.

    Attributes:
        by_test (dict[str, str]): ``'passed'``, ``'skipped'`` or
            ``'failed'``, by test, or by file if it cannot be imported.
    """

    def __init__(self) -> None:
        self.by_test: dict[str, str] = {}

    def pytest_runtest_logreport(self, report) -> None:
        # Of set-up, test and tear-down the worst counts.
        if self.by_test.get(report.nodeid) != 'failed' and (
            report.when == 'call' or not report.passed
        ):
            self.by_test[report.nodeid] = report.outcome

    def pytest_collectreport(self, report) -> None:
        if not report.passed:
            self.by_test[report.nodeid] = report.outcome


def compare(
    outcomes: dict[str, str], known: dict[str, str]
) -> tuple[Counter, list[str], list[str]]:
    """Compare how tests ended with what is known.

    Returns:
        tuple: How many ended in each way, with a key for each reason of a
        known failure; the failures that are new; and the tests that are known
        to fail and passed.
    """
    counts: Counter = Counter()
    new, mended = [], []
    for test, outcome in outcomes.items():
        if outcome == 'failed' and test in known:
            outcome = f'failed as known: {known[test]}'
        elif outcome == 'failed':
            new.append(test)
            outcome = 'NEW FAILURE'
        elif outcome == 'passed' and test in known:
            mended.append(test)
        counts[outcome] += 1
    return counts, new, mended


def describe_stack() -> str:
    found = []
    for name in STACK:
        try:
            found.append(f'{name} {version(name)}')
        except PackageNotFoundError:
            continue
    return ', '.join(found)


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('suite', help='the package: mmrazor, mmpretrain')
    parser.add_argument(
        '--tests',
        type=Path,
        help='folder `tests` of a checkout; default: those that the installed '
        'package brings along',
    )
    parser.add_argument(
        '--known',
        type=Path,
        help='list of what is known to fail; default: the one beside this '
        'file',
    )
    parser.add_argument(
        '--without-mmcakd',
        action='store_true',
        help='do not import mmcakd, to see what fails without it',
    )
    return parser.parse_known_args()


def main() -> int:
    args, rest = parse_args()
    known = {}
    if args.known or (LISTS / f'{args.suite}.txt').exists():
        known = read_known(args.known or LISTS / f'{args.suite}.txt')
    if not args.without_mmcakd:
        import mmcakd  # noqa: F401
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as folder:
        copy_tests(args.suite, args.tests, Path(folder))
        os.chdir(folder)
        if not any(part.startswith('tests') for part in rest):
            rest.append('tests')
        pytest.main(
            ['--continue-on-collection-errors', '--rootdir', folder]
            + ['-p', 'no:cacheprovider', '-q', *rest],
            plugins=[outcomes],
        )
        os.chdir('/')
    counts, new, mended = compare(outcomes.by_test, known)
    print(f'{args.suite} on {describe_stack()}')
    table = Table('outcome', 'tests')
    for outcome, count in sorted(counts.items(), reverse=True):
        table.add_row(outcome, str(count))
    Console().print(table)
    for heading, tests in (
        ('Known to fail, but passed', mended),
        ('NEW failures', new),
    ):
        if tests:
            print(f'{heading}:', *tests, sep='\n')
    return 1 if new or not counts else 0


if __name__ == '__main__':
    sys.exit(main())
