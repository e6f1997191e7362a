"""Distil a small ViT into a small ResNet, three ways, and report.

    bash tools/quickstart.sh [--seeds 0 1 2] [--methods ...] [--smoke]

Renders a data set, trains the same student alone, with logit distillation and
with ScaleKD on the same schedule and seeds, and writes a table, curves, the
ScaleKD student as a plain MMPretrain checkpoint and what it says of some
held-out images. Run again, it reuses what is finished and resumes what is not.
"""

import argparse
import hashlib
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

matplotlib.use('Agg')
warnings.simplefilter('ignore')
from matplotlib import pyplot  # noqa: E402

from mmcakd.engine import rescale_epochs  # noqa: E402
from mmcakd.utils import (  # noqa: E402
    Command,
    FolderLock,
    describe_commit,
    describe_machine,
    draw_curves,
    export_student,
    markdown_table,
    mean_gain,
    mean_std,
    read_curve,
    read_json,
    replacing,
    write_json,
    write_text,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'quickstart'
METHODS = dict(student_alone='student alone', kd='logit KD', scalekd='ScaleKD')
SMOKE = ['--num-train', '64', '--num-val', '48']

console = Console(width=None if sys.stdout.isatty() else 120)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=[0], help='one run for each'
    )
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=METHODS,
        default=list(METHODS),
        help='which of them (default: all)',
    )
    parser.add_argument(
        '--epochs', type=int, help='other than the config says'
    )
    parser.add_argument(
        '--smoke',
        action='store_true',
        help='a few images and one epoch, to see that all of it works',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='where everything goes (default: work_dirs/quickstart)',
    )
    args = parser.parse_args()
    if args.smoke and args.epochs is None:
        args.epochs = 1
    name = 'quickstart_smoke' if args.smoke else 'quickstart'
    args.work_dir = (args.work_dir or ROOT / 'work_dirs' / name).resolve()
    args.seeds = list(dict.fromkeys(args.seeds))
    return args


# ------------------------------------------------------------------- training


@dataclass
class Result:
    """What a training run came to.

    Attributes:
        method (str): Name of its config.
        seed (int): Its seed.
        curve (dict[int, float]): Top-1 on held-out images by epoch.
        seconds (float): Wall time.
    """

    method: str
    seed: int
    curve: dict[int, float]
    seconds: float

    @property
    def top1(self) -> float:
        """Top-1 after the last epoch."""
        return self.curve[max(self.curve)]


def render_data(args: argparse.Namespace) -> Path:
    # The folder of the configs, so that tools/train.py finds it there too.
    data = args.work_dir / 'shapes' if args.smoke else ROOT / 'data/shapes'
    tool = ROOT / 'tools/dataset_converters/render_shapes.py'
    options = SMOKE if args.smoke else []
    run([sys.executable, tool, data, *options], say=console.print)
    return data


def configure(
    method: str, seed: int, data: Path, args: argparse.Namespace
) -> Config:
    cfg = Config.fromfile(CONFIGS / f'{method}.py')
    cfg.randomness.seed = seed
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = str(data)
    if 'teacher_ckpt' in cfg.model:
        cfg.model.teacher_ckpt = str(ROOT / cfg.model.teacher_ckpt)
    if args.epochs is not None:
        rescale_epochs(cfg, args.epochs)
    return cfg


def fingerprint(cfg: Config, data: Path) -> str:
    """Tell apart runs that would not come out the same."""
    digest = hashlib.sha256(cfg.pretty_text.encode())
    files = sorted((ROOT / 'mmcakd').rglob('*.py')) + [data / 'manifest.json']
    if 'teacher_ckpt' in cfg.model:
        files.append(Path(cfg.model.teacher_ckpt))
    for file in files:
        digest.update(file.read_bytes())
    digest.update(torch.__version__.encode())
    return digest.hexdigest()


def train(
    cfg: Config, method: str, work_dir: Path, stamp: str
) -> tuple[Result, bool]:
    """Train in a process of its own, or reuse what a former one came to.

    Returns:
        tuple[Result, bool]: The result, and whether it is a former one.
    """
    with FolderLock(work_dir) as lock:
        former = read_stamp(work_dir, cfg, stamp)
        if former != stamp and work_dir.exists():
            if former is None and any(work_dir.iterdir()):
                raise SystemExit(
                    f'{work_dir} was not made by the quick start: move it '
                    'away, or choose another --work-dir'
                )
            shutil.rmtree(work_dir)
        result = read_result(work_dir)
        if result is not None:
            return result, True
        return train_in(work_dir, cfg, method, stamp, lock), False


def read_stamp(work_dir: Path, cfg: Config, stamp: str) -> str | None:
    """The stamp of what a folder holds; None if it holds something else."""
    started, config = work_dir / 'started', work_dir / 'config.py'
    if not started.is_file():
        return None
    former = started.read_text(errors='replace')
    if not re.fullmatch(r'[0-9a-f]{64}', former):
        console.print(f'{started} cannot be read: it is damaged')
        # The run goes on if its config at least is the same.
        text = config.read_text(errors='replace') if config.is_file() else ''
        return stamp if text == cfg.pretty_text else 'another'
    return former


def read_result(work_dir: Path) -> Result | None:
    """What a finished run came to; None if it is not finished."""
    done = work_dir / 'result.json'
    if not done.is_file():
        return None
    try:
        result = read_json(done)
        curve = {int(epoch): top1 for epoch, top1 in result['curve'].items()}
        return Result(**result | dict(curve=curve))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = error if isinstance(error, ValueError) else 'it is no result'
        console.print(f'{done}: the run counts as not finished ({what})')
        return None


def train_in(
    work_dir: Path, cfg: Config, method: str, stamp: str, lock: FolderLock
) -> Result:
    """Train in a folder, from where a former process left off."""
    seed = cfg.randomness.seed
    work_dir.mkdir(parents=True, exist_ok=True)
    write_text(work_dir / 'config.py', cfg.pretty_text)
    write_text(work_dir / 'started', stamp)
    start = time.perf_counter()
    with Watch(f'{METHODS[method]}, seed {seed}', cfg) as watch:
        run(
            [
                sys.executable,
                ROOT / 'tools/train.py',
                work_dir / 'config.py',
                '--work-dir',
                work_dir,
                '--resume',
            ],
            say=watch.read,
            log=work_dir / 'train.log',
            lock=lock,
        )
    result = Result(
        method, seed, read_curve(work_dir), time.perf_counter() - start
    )
    write_json(work_dir / 'result.json', asdict(result))
    return result


def run(
    command: list,
    say: Callable[[str], None],
    log: Path | None = None,
    lock: FolderLock | None = None,
) -> None:
    """Run a command; hand its lines on, and stop with the last ones."""
    lines: list[str] = []
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | dict(PYTHONUNBUFFERED='1', PYTHONWARNINGS='ignore'),
        # If the quick start is killed, the training goes on.
        pass_fds=lock.handles if lock else (),
    )
    if lock:
        lock.name_holder(process.pid)
    try:
        with open(log or os.devnull, 'a') as file:
            for line in process.stdout:
                file.write(line)
                lines.append(line.rstrip())
                say(line.rstrip())
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        code = process.wait()
    if code:
        where = f'; all of it: {log}' if log else ''
        raise SystemExit(
            '\n'.join(lines[-20:]) + f'\n{command[1]} ended with {code}{where}'
        )


class Watch:
    """Progress of a training: a bar on a terminal, lines elsewhere."""

    STEP = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\]')
    SCORE = re.compile(r'Epoch\(val\) \[(\d+)\].*accuracy/top1: ([\d.]+)')

    def __init__(self, name: str, cfg: Config) -> None:
        self.name = name
        self.epochs = cfg.train_cfg.max_epochs
        self.bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.fields[top1]}'),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> 'Watch':
        self.bar.start()
        self.task = self.bar.add_task(self.name, total=self.epochs, top1='')
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()

    def read(self, line: str) -> None:
        if step := self.STEP.search(line):
            epoch, iteration, iterations = map(int, step.groups())
            done = epoch - 1 + iteration / iterations
            self.bar.update(self.task, completed=done)
        elif score := self.SCORE.search(line):
            epoch, top1 = int(score[1]), f'top-1 {float(score[2]):.1f} %'
            self.bar.update(self.task, completed=epoch, top1=top1)
            if not console.is_terminal:
                console.print(
                    f'{self.name}: epoch {epoch}/{self.epochs}, {top1}'
                )


def test_teacher(data: Path, work_dir: Path) -> float:
    """Top-1 of the teacher, as tools/test.py finds it."""
    out = work_dir / 'metrics.json'
    teacher = Config.fromfile(CONFIGS / 'teacher.py')
    command = [
        sys.executable,
        ROOT / 'tools/test.py',
        CONFIGS / 'teacher.py',
        ROOT / teacher.teacher_ckpt,
        '--work-dir',
        work_dir,
        '--out',
        out,
        '--cfg-options',
        f'test_dataloader.dataset.data_root={data}',
    ]
    work_dir.mkdir(parents=True, exist_ok=True)
    run(command, say=lambda line: None, log=work_dir / 'test.log')
    return read_json(out)['accuracy/top1']


# ------------------------------------------------------------------ reporting


def table_rows(results: list[Result], teacher: float) -> list[list[str]]:
    by_method: dict[str, list[Result]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    alone = {r.seed: r.top1 for r in by_method.get('student_alone', [])}
    rows = [['teacher (ViT)', f'{teacher:.1f}', '', '']]
    for method, runs in by_method.items():
        gain = mean_gain({r.seed: r.top1 for r in runs}, alone)
        is_gain = gain is not None and method != 'student_alone'
        rows.append(
            [
                METHODS[method],
                mean_std([r.top1 for r in runs]),
                f'{gain:+.1f}' if is_gain else '',
                f'{statistics.mean(r.seconds for r in runs):.0f}',
            ]
        )
    return rows


def column_names(args: argparse.Namespace) -> list[str]:
    seeds = len(args.seeds)
    top1 = 'top-1 %' if seeds == 1 else f'top-1 %, {seeds} seeds'
    return ['', top1, 'gain', 'seconds']


def print_table(rows: list[list[str]], args: argparse.Namespace) -> None:
    table = Table(title='Held-out images', title_justify='left')
    for name in column_names(args):
        table.add_column(name, justify='right' if name else 'left')
    for row in rows:
        table.add_row(*row)
    console.print(table)


def draw_predictions(checkpoint: Path, data: Path, out: Path) -> str:
    """Show MMPretrain's inferencer an image of each class."""
    from mmpretrain import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(
        str(checkpoint.with_suffix('.py')), pretrained=str(checkpoint)
    )
    folders = sorted(path for path in (data / 'val').iterdir())
    images = [min(folder.iterdir()) for folder in folders]
    predictions = inferencer(list(map(str, images)), batch_size=len(images))

    columns = 6
    rows = -(-len(images) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(2 * columns, 2.3 * rows), squeeze=False
    )
    right = 0
    for axis in axes.flat:
        axis.axis('off')
    for axis, image, prediction in zip(
        axes.flat[: len(images)], images, predictions, strict=True
    ):
        fine = prediction['pred_class'] == image.parent.name
        right += fine
        axis.imshow(pyplot.imread(image))
        axis.set_title(
            f'{prediction["pred_class"]}\n{prediction["pred_score"]:.0%}'
            + ('' if fine else f', is {image.parent.name}'),
            fontsize=8,
            color='darkgreen' if fine else 'crimson',
        )
    figure.tight_layout()
    with replacing(out) as written:
        figure.savefig(written, dpi=100)
    pyplot.close(figure)
    return f'{right} of {len(images)} right'


def write_report(
    args: argparse.Namespace,
    rows: list[list[str]],
    cfg: Config,
    lines: list[str],
    took: str,
) -> Path:
    columns = column_names(args)
    train = cfg.train_dataloader.dataset
    images = sum(1 for _ in Path(train.data_root, 'train').rglob('*.png'))
    report = [
        '# Quick start',
        '',
        *markdown_table(columns, rows),
        '',
        'Top-1 after the last epoch; the gain is over the student alone with '
        'the same seed.',
        '',
        '![Curves](curves.png)',
        '',
        *lines,
        '',
        f'- command: `python demo/quickstart.py {" ".join(sys.argv[1:])}`',
        f'- seeds: {", ".join(map(str, args.seeds))}',
        f'- schedule: {cfg.train_cfg.max_epochs} epochs of {images} images',
        f'- wall time: {took}',
        f'- machine: {describe_machine()}',
        f'- commit: {describe_commit(ROOT)}',
    ]
    path = args.work_dir / 'report.md'
    write_text(path, '\n'.join(report) + '\n')
    return path


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    data = render_data(args)
    teacher = test_teacher(data, args.work_dir / 'teacher')
    console.print(f'teacher: top-1 {teacher:.1f} %')

    results, reused = [], 0
    for method in args.methods:
        for seed in args.seeds:
            cfg = configure(method, seed, data, args)
            work_dir = args.work_dir / method / f'seed_{seed}'
            result, former = train(
                cfg, method, work_dir, fingerprint(cfg, data)
            )
            results.append(result)
            reused += former
            console.print(
                f'{METHODS[method]}, seed {seed}: top-1 {result.top1:.1f} % '
                f'in {result.seconds:.0f} s' + (', done before' * former)
            )

    rows = table_rows(results, teacher)
    print_table(rows, args)
    curves = {
        name: [r.curve for r in results if r.method == method]
        for method, name in METHODS.items()
    }
    draw_curves(curves, args.work_dir / 'curves.png', dict(teacher=teacher))
    lines = []
    if 'scalekd' in args.methods:
        # MMEngine tells, line by line, what it loads.
        MMLogger.get_current_instance().setLevel('ERROR')
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            student = export_student(
                args.work_dir / 'scalekd' / f'seed_{args.seeds[0]}',
                args.work_dir / 'scalekd_student.pth',
            )
            right = draw_predictions(
                student, data, args.work_dir / 'predictions.png'
            )
        lines += [
            '![Predictions](predictions.png)',
            '',
            f'The ScaleKD student is `{student.name}`, a plain MMPretrain '
            f"checkpoint; `{student.stem}.py` is its config. MMPretrain's "
            f'`ImageClassificationInferencer` got {right} in the picture.',
        ]
        console.print(f'{student}: a plain MMPretrain checkpoint, {right}')
    minutes = (time.perf_counter() - start) / 60
    took = f'{minutes:.1f} minutes'
    if reused:
        took += f', with {reused} of {len(results)} runs done before'
    report = write_report(args, rows, cfg, lines, took)
    console.print(f'{report}: the report, after {minutes:.1f} minutes')


if __name__ == '__main__':
    try:
        with Command():
            main()
    except KeyboardInterrupt:
        raise SystemExit('\ninterrupted; run it again to go on') from None
