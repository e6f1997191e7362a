"""Test students on images with noise and with covered parts.

    python tools/analysis_tools/robustness.py work_dirs/compare/alone-resnet \
        work_dirs/compare/kd-vit_resnet --out work_dirs/robustness

A work directory is that of a run, or a folder of runs `seed0`, `seed1`, ...,
as tools/analysis_tools/compare.py leaves it. All models see the same corrupted
images. Writes results.csv, report.md and curves.png.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmcakd.evaluation import add_noise, occlude
from mmcakd.models.teachers import (
    build_model,
    fit_weights,
    read_checkpoint,
)
from mmcakd.utils import (
    Command,
    find_checkpoint,
    recorded_student,
    replacing,
    student_state_dict,
    write_text,
)
from mmcakd.utils.experiments import (
    describe_commit,
    describe_machine,
    draw_band,
    markdown_table,
    mean_std,
)

ROOT = Path(__file__).resolve().parents[2]
CORRUPTIONS = dict(noise=add_noise, occlusion=occlude)
UNITS = dict(
    noise='standard deviation of the noise, of 255',
    occlusion='covered share of the image',
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('work_dirs', nargs='+', type=Path)
    parser.add_argument('--labels', nargs='+', help='names, one a directory')
    parser.add_argument(
        '--noise', nargs='*', type=float, default=[10.0, 20.0, 40.0]
    )
    parser.add_argument(
        '--occlusion', nargs='*', type=float, default=[0.1, 0.2, 0.4]
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/robustness')
    )
    args = parser.parse_args()
    if args.labels and len(args.labels) != len(args.work_dirs):
        parser.error('--labels needs one name for each work directory')
    return args


@dataclass
class Group:
    """The runs of one method.

    Attributes:
        label (str): Its name.
        runs (dict[str, Path]): Checkpoint by name of the run.
        top1 (dict[tuple, list[float]]): Top-1 in percent of each run by
            corruption and severity.
    """

    label: str
    runs: dict[str, Path]
    top1: dict[tuple[str, float], list[float]] = field(default_factory=dict)


def find_runs(work_dir: Path) -> dict[str, Path]:
    """Find the checkpoints of a run, or of one run for each seed."""
    seeds = sorted(work_dir.glob('seed*'))
    return {run.name: find_checkpoint(run) for run in seeds or [work_dir]}


def severities(args: argparse.Namespace) -> list[tuple[str, float]]:
    return [
        ('clean', 0.0),
        *(('noise', std) for std in args.noise),
        *(('occlusion', share) for share in args.occlusion),
    ]


def corrupted(data: dict, kind: str, severity: float, seed: int) -> dict:
    """Corrupt a batch, the same way for every model."""
    if kind == 'clean':
        return data
    inputs = data['inputs']
    batched = isinstance(inputs, torch.Tensor)
    images = inputs if batched else torch.stack(list(inputs))
    generator = torch.Generator().manual_seed(seed)
    images = CORRUPTIONS[kind](images, severity, generator)
    return {**data, 'inputs': images if batched else list(images)}


def load(checkpoint: Path) -> tuple[torch.nn.Module, Config]:
    """Build the student of a run with its weights."""
    content = read_checkpoint(checkpoint)
    cfg = recorded_student(content, checkpoint)
    init_default_scope(cfg.default_scope)
    model = build_model(cfg.model, 'student', cfg.get('data_preprocessor'))
    fit_weights(model, student_state_dict(content), checkpoint)
    return model.eval(), cfg


@torch.no_grad()
def evaluate(
    checkpoint: Path, args: argparse.Namespace
) -> Iterator[tuple[tuple[str, float], float]]:
    """Yield top-1 in percent for each corruption and severity."""
    model, cfg = load(checkpoint)
    # The same order of images, hence the same corruption of each.
    loader = Runner.build_dataloader(cfg.test_dataloader, seed=args.seed)
    correct: dict[tuple[str, float], int] = {}
    total = 0
    for index, batch in enumerate(loader):
        total += len(batch['data_samples'])
        for kind, severity in severities(args):
            # Each batch has a seed of its own; far apart for two `seed`s.
            seed = args.seed * 1_000_000 + index
            data = corrupted(batch, kind, severity, seed)
            data = model.data_preprocessor(data, training=False)
            for sample in model(**data, mode='predict'):
                hit = int(sample.pred_label) == int(sample.gt_label)
                key = (kind, severity)
                correct[key] = correct.get(key, 0) + hit
    for key, hits in correct.items():
        yield key, 100 * hits / total


def cells(group: Group, args: argparse.Namespace) -> list[str]:
    return [mean_std(group.top1[key]) for key in severities(args)]


def write(groups: list[Group], args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    with (
        replacing(args.out / 'results.csv') as written,
        open(written, 'w', newline='') as file,
    ):
        writer = csv.writer(file)
        writer.writerow(['method', 'run', 'corruption', 'severity', 'top1'])
        for group in groups:
            for (kind, severity), scores in group.top1.items():
                for run, score in zip(group.runs, scores, strict=True):
                    writer.writerow(
                        [group.label, run, kind, severity, f'{score:.3f}']
                    )
    header = [''] + [
        kind if kind == 'clean' else f'{kind} {severity:g}'
        for kind, severity in severities(args)
    ]
    rows = [[group.label, *cells(group, args)] for group in groups]
    table = '\n'.join(markdown_table(header, rows))
    runs = ', '.join(f'{g.label}: {len(g.runs)}' for g in groups)
    write_text(
        args.out / 'report.md',
        'Top-1 in %, mean and standard deviation over the runs '
        f'({runs}); noise in units of 255, occlusion as share of the area.'
        f'\n\n{table}\n\n{describe_machine()}, {describe_commit(ROOT)}\n',
    )
    print(table)
    draw(groups, args)


def draw(groups: list[Group], args: argparse.Namespace) -> None:
    kinds = [kind for kind in CORRUPTIONS if getattr(args, kind)]
    if not kinds:
        return
    figure = Figure(figsize=(4.5 * len(kinds), 3.6))
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        places = [('clean', 0.0), *((kind, s) for s in getattr(args, kind))]
        for group in groups:
            curves = [
                {place[1]: group.top1[place][run] for place in places}
                for run in range(len(group.runs))
            ]
            draw_band(axis, curves, group.label)
        axis.set_xlabel(UNITS[kind])
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel('top-1 in %')
    figure.axes[0].legend(fontsize=8)
    figure.tight_layout()
    with replacing(args.out / 'curves.png') as written:
        figure.savefig(written, dpi=120)


def main() -> int:
    args = parse_args()
    groups = [
        Group(label, find_runs(work_dir))
        for label, work_dir in zip(
            args.labels or [path.name for path in args.work_dirs],
            args.work_dirs,
            strict=True,
        )
    ]
    for group in groups:
        for name, checkpoint in group.runs.items():
            print(f'{group.label}, {name}', flush=True)
            for key, score in evaluate(checkpoint, args):
                group.top1.setdefault(key, []).append(score)
    write(groups, args)
    return 0


if __name__ == '__main__':
    with Command():
        sys.exit(main())
