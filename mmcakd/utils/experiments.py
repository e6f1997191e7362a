"""What several training runs came to: curves, tables, and where they ran."""

import difflib
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmcakd.version import __version__

from .files import read_json_lines, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Mapping[int, float]


def read_curve(
    work_dir: str | Path, metric: str = 'accuracy/top1'
) -> dict[int, float]:
    """Read the accuracies that a run wrote down.

    Args:
        work_dir (str | Path): Work directory of a run. If it was resumed, its
            parts are joined.
        metric (str): Their name. Defaults to ``'accuracy/top1'``.

    Returns:
        dict[int, float]: Top-1 on held-out images by epoch.
    """
    curve = {}
    for scalars in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for scalar in read_json_lines(scalars):
            if metric in scalar and 'step' in scalar:
                curve[scalar['step']] = scalar[metric]
    return dict(sorted(curve.items()))


def mean_std(values: Sequence[float], digits: int = 1) -> str:
    """Write a mean and the standard deviation of the sample.

    Examples:
        >>> from mmcakd.utils import mean_std
        >>> mean_std([60.0, 62.0]), mean_std([60.0], digits=2)
        ('61.0 ± 1.4', '60.00')
    """
    mean = f'{statistics.mean(values):.{digits}f}'
    if len(values) == 1:
        return mean
    return f'{mean} ± {statistics.stdev(values):.{digits}f}'


def mean_gain(
    scores: Mapping[int, float], baseline: Mapping[int, float]
) -> float | None:
    """Mean gain over the baseline with the same seed.

    Args:
        scores (Mapping[int, float]): Score by seed.
        baseline (Mapping[int, float]): Likewise.

    Returns:
        float, optional: None if they have no seed in common.

    Examples:
        >>> from mmcakd.utils import mean_gain
        >>> mean_gain({0: 71.0, 1: 74.0, 2: 99.0}, {0: 70.0, 1: 70.0})
        2.5
    """
    gains = [
        scores[seed] - baseline[seed] for seed in scores.keys() & baseline
    ]
    return statistics.mean(gains) if gains else None


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[str]:
    """Write a table as lines of Markdown.

    Examples:
        >>> from mmcakd.utils import markdown_table
        >>> markdown_table(['', 'top-1'], [['alone', '61.0']])
        ['|  | top-1 |', '|---|---|', '| alone | 61.0 |']
    """
    lines = ['| ' + ' | '.join(row) + ' |' for row in (header, *rows)]
    return [lines[0], '|' + '---|' * len(header), *lines[1:]]


def draw_band(
    axes: 'Axes', curves: Sequence[Mapping[float, float]], label: str
) -> None:
    """Draw the mean of some curves within a band of their least and most.

    Args:
        axes (Axes): Of Matplotlib.
        curves (Sequence[Mapping[float, float]]): One for each seed. The
            places that all of them have are drawn.
        label (str): For the legend.
    """
    places = sorted(set.intersection(*map(set, curves)))
    points = [[curve[place] for curve in curves] for place in places]
    means = list(map(statistics.mean, points))
    (line,) = axes.plot(places, means, marker='.', label=label)
    axes.fill_between(
        places,
        list(map(min, points)),
        list(map(max, points)),
        color=line.get_color(),
        alpha=0.15,
    )


def draw_curves(
    curves: Mapping[str, Sequence[Curve]],
    out: str | Path,
    levels: Mapping[str, float] | None = None,
    title: str = '',
) -> None:
    """Draw mean accuracies over the epochs, within bands of least and most.

    Args:
        curves (Mapping[str, Sequence[Mapping[int, float]]]): The curves of
            all seeds by label. The epochs that all of them have are drawn.
        out (str | Path): The picture.
        levels (Mapping[str, float], optional): Lines across, by label.
        title (str): Defaults to none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for label, seeds in curves.items():
        if seeds:
            draw_band(axes, seeds, label)
    for label, level in (levels or {}).items():
        axes.axhline(level, color='grey', linestyle='--', label=label)
    axes.set(xlabel='epoch', ylabel='top-1 on held-out images, %', title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with replacing(out) as written:
        figure.savefig(written, dpi=120)


def config_changes(before: str, now: str) -> str:
    """Tell what has changed in the text of a config.

    Examples:
        >>> from mmcakd.utils import config_changes
        >>> print(config_changes('lr = 1\\nseed = 0', 'lr = 2\\nseed = 0'))
        its config has changed since:
        @@ -1 +1 @@
        -lr = 1
        +lr = 2
        >>> config_changes('lr = 1', 'lr = 1')
        ''
    """
    lines = difflib.unified_diff(
        before.splitlines(), now.splitlines(), n=0, lineterm=''
    )
    changed = [line for line in lines if not line.startswith(('---', '+++'))]
    if not changed:
        return ''
    return 'its config has changed since:\n' + '\n'.join(changed[:20])


def describe_machine() -> str:
    """Name processor, GPU, system and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.is_file():
        names = re.findall(r'model name\s*: (.*)', info.read_text())
        cpu = names[0] if names else cpu
    gpu = ''
    if torch.cuda.is_available():
        gpu = f'{torch.cuda.get_device_name()}, '
    return (
        f'{gpu}{cpu}, {os.cpu_count()} cores, {platform.system()} '
        f'{platform.release()}, Python {platform.python_version()}, '
        f'torch {torch.__version__}, mmcakd {__version__}'
    )


def describe_commit(root: str | Path) -> str:
    """Name the git commit of a checkout, and whether it was changed."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', '-C', str(root), *arguments],
            capture_output=True,
            text=True,
        ).stdout.strip()

    try:
        commit = git('rev-parse', 'HEAD')
    except OSError:
        commit = ''
    if not commit:
        return 'not a git checkout'
    return commit + (', with changes' if git('status', '--porcelain') else '')
