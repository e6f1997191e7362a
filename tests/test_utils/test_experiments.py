import subprocess

from matplotlib.axes import Axes
from PIL import Image

from mmcakd.utils import (
    describe_commit,
    describe_machine,
    draw_curves,
    markdown_table,
    mean_gain,
    mean_std,
)


def test_deviation_is_that_of_the_sample():
    assert mean_std([1.0, 2.0, 6.0], digits=2) == '3.00 ± 2.65'
    assert mean_std([1.25]) == '1.2'


def test_gain_is_paired_by_seed():
    assert mean_gain({0: 3.0, 1: 5.0}, {1: 4.0, 0: 1.0}) == 1.5
    assert mean_gain({0: 3.0, 1: 5.0}, {1: 4.0, 7: 0.0}) == 1.0
    assert mean_gain({0: 3.0}, {1: 4.0}) is None


def test_curves_are_means_within_bands(tmp_path, monkeypatch):
    drawn = []
    for kind in ('plot', 'fill_between', 'axhline'):
        original = getattr(Axes, kind)

        def spy(self, *args, original=original, **kwargs):
            drawn.append([kwargs.get('label'), *args])
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Axes, kind, spy)
    curves = {
        'a': [{1: 10.0, 2: 20.0, 3: 99.0}, {1: 20.0, 2: 40.0}],
        'not run': [],
    }
    draw_curves(curves, tmp_path / 'c.png', dict(teacher=90.0), 'title')
    assert drawn == [
        ['a', [1, 2], [15.0, 30.0]],
        [None, [1, 2], [10.0, 20.0], [20.0, 40.0]],
        ['teacher', 90.0],
    ]
    assert Image.open(tmp_path / 'c.png').size == (840, 540)


def test_table_is_markdown():
    assert markdown_table(['', 'a'], [['x', '1'], ['y', '']]) == [
        '|  | a |',
        '|---|---|',
        '| x | 1 |',
        '| y |  |',
    ]


def test_commit_tells_whether_the_checkout_was_changed(tmp_path):
    def git(*arguments):
        subprocess.run(
            [
                'git',
                '-C',
                tmp_path,
                '-c',
                'user.name=a',
                '-c',
                'user.email=a@b',
            ]
            + list(arguments),
            check=True,
            capture_output=True,
        )

    assert describe_commit(tmp_path) == 'not a git checkout'
    git('init')
    git('commit', '--allow-empty', '-m', 'first')
    clean = describe_commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / 'new').touch()
    assert describe_commit(tmp_path) == f'{clean}, with changes'


def test_machine_names_versions():
    assert 'torch ' in describe_machine()
    assert 'mmcakd ' in describe_machine()
