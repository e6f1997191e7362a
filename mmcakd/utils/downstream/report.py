"""Metrics of several runs side by side."""

import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..experiments import (
    describe_machine,
    markdown_table,
    mean_gain,
    mean_std,
)
from ..files import write_json, write_text
from .run import DownstreamRun

#: Heading and factor of what goes into the table, by MMEngine's last name.
METRICS = {
    'bbox_mAP': ('AP box', 100),
    'bbox_mAP_50': ('AP50 box', 100),
    'segm_mAP': ('AP mask', 100),
    'segm_mAP_50': ('AP50 mask', 100),
    'mIoU': ('mIoU', 1),
    'aAcc': ('aAcc', 1),
    'top1': ('top-1', 1),
}


def tabulate(
    results: Sequence[tuple[DownstreamRun, dict]],
) -> tuple[list[str], list[list[str]]]:
    """Tabulate metrics, in the order of the runs, and the student's gains.

    Args:
        results (Sequence[tuple[DownstreamRun, dict]]): Runs and metrics.

    Returns:
        tuple[list[str], list[list[str]]]: Header and rows. With several seeds
        a cell is a mean and the standard deviation of the sample; a gain is a
        mean over the seeds that both have.
    """
    found = list(
        dict.fromkeys(key for _, metrics in results for key in metrics)
    )
    shown = {
        key: METRICS[name]
        for name in METRICS
        for key in found
        if key.split('/')[-1] == name
    } or {key: (key, 1) for key in found or ['no metric']}
    scores = {
        run.name: {
            key: {
                other.seed: factor * metrics[key]
                for other, metrics in results
                if other.name == run.name and key in metrics
            }
            for key, (_, factor) in shown.items()
        }
        for run, _ in results
    }
    rows = [
        [name, *map(_mean, by_metric.values())]
        for name, by_metric in scores.items()
    ]
    for name in scores:
        if name != 'student':
            gains = (
                mean_gain(scores['student'][key], scores[name][key])
                for key in shown
            )
            rows.append([f'student - {name}', *map(_signed, gains)])
    return ['', *(heading for heading, _ in shown.values())], rows


def _mean(scores: dict[int, float]) -> str:
    # MMDetection has no AP for a detector that finds nothing at all.
    return mean_std(list(scores.values()), digits=2) if scores else '-'


def _signed(gain: float | None) -> str:
    return '-' if gain is None else f'{gain:+.2f}'


def installed_versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    found = {}
    for name in (
        'mmcakd',
        'torch',
        'mmengine',
        'mmcv',
        'mmpretrain',
        'mmdet',
        'mmsegmentation',
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_report(
    work_dir: str | Path,
    config: str | Path,
    results: Sequence[tuple[DownstreamRun, dict]],
    command: str,
    commit: str,
) -> Path:
    """Write ``report.md`` and ``results.json``.

    Args:
        work_dir (str | Path): The folder they go into.
        config (str | Path): The config's file.
        results (Sequence[tuple[DownstreamRun, dict]]): Runs and metrics.
        command (str): What was called.
        commit (str): What it was made with.

    Returns:
        Path: The report.
    """
    work_dir = Path(work_dir)
    seeds = list(dict.fromkeys(run.seed for run, _ in results))
    versions = installed_versions()
    content = dict(
        config=str(config),
        seeds=seeds,
        runs=[
            dict(
                name=run.name,
                seed=run.seed,
                source=run.source,
                checkpoint=run.checkpoint and str(run.checkpoint),
                sha256=run.digest,
                work_dir=str(run.work_dir),
                metrics=metrics,
            )
            for run, metrics in results
        ],
        versions=versions,
        machine=describe_machine(),
        commit=commit,
        command=command,
        made=time.strftime('%Y-%m-%d %H:%M:%S'),
    )
    write_json(work_dir / 'results.json', content)

    several = len(seeds) > 1
    report = [
        f'# {Path(config).stem}',
        '',
        *markdown_table(*tabulate(results)),
        '',
        'Metrics in %, of the weights after the last step'
        + (
            f'; mean and standard deviation of the sample over {len(seeds)} '
            'seeds. A difference is a mean over seeds.'
            if several
            else '.'
        ),
        '',
        *(
            f'- {run.name}, seed {run.seed}: '
            + (
                f'`{run.checkpoint}`, SHA-256 `{run.digest}`'
                if run.checkpoint
                else 'backbone from scratch, nothing frozen'
            )
            for run, _ in results
        ),
        f'- config: `{config}`',
        f'- command: `{command}`',
        f'- commit: {commit}',
        f'- machine: {content["machine"]}',
        '- versions: '
        + ', '.join(f'{name} {number}' for name, number in versions.items()),
    ]
    path = work_dir / 'report.md'
    write_text(path, '\n'.join(report) + '\n')
    return path
