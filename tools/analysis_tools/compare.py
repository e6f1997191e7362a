"""Train configs with several seeds each, and tabulate their accuracies.

    compare.py CONFIG [CONFIG ...] --seeds 0 1 2 --work-dir work_dirs/compare
    compare.py [CONFIG ...] --report-only --work-dir work_dirs/compare

Each run is a process of tools/train.py in WORK_DIR/CONFIG/seedN, where CONFIG
is the config's name, with that of its folder in front where two have the same
name. Started again, the tool skips runs that are finished and resumes those
that are not; it stops if their config has changed since.

It writes report.md, results.csv and curves.png into the work directory. The
score is top-1 after the last epoch; runs that did not get there do not count.
What a run says of an assistant (mmcakd.AssistantAccuracyHook) is told as well.
With --report-only nothing is trained, and runs made by hand count too.
"""

import argparse
import csv
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from mmengine.config import Config, DictAction
from rich.console import Console
from rich.table import Table

import mmcakd  # noqa: F401
from mmcakd.models.teachers.sources import TEACHER, weight_files
from mmcakd.utils import (
    Command,
    FolderLock,
    config_changes,
    describe_commit,
    describe_machine,
    draw_curves,
    markdown_table,
    mean_gain,
    mean_std,
    read_config,
    read_curve,
    read_dumped_config,
    read_json,
    replacing,
    sha256,
    write_json,
    write_text,
)

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / 'tools/train.py'
MARKER = 'compare.json'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        'configs',
        nargs='*',
        help='files; with --report-only names will do, and none stands for\n'
        'all that are in the work directory',
    )
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        help='one run for each (default: 0; with --report-only all there are)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/compare'),
        help='default: %(default)s',
    )
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    parser.add_argument(
        '--report-only', action='store_true', help='train nothing'
    )
    parser.add_argument(
        '--baseline',
        metavar='NAME',
        help='the config that gains are over (default: the first)',
    )
    parser.add_argument(
        '--labels', nargs='+', help='of the configs, in their order'
    )
    parser.add_argument('--title', default='Comparison', help='of the report')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='override settings of all configs: a.b=1 c="[1,2]" d="(x,y)"',
    )
    args = parser.parse_args()
    if not args.report_only and not args.configs:
        parser.error('name the configs to train, or give --report-only')
    if args.report_only and args.cfg_options:
        parser.error('--cfg-options change nothing with --report-only')
    if args.jobs < 1:
        parser.error('--jobs must be positive')
    if args.seeds:
        args.seeds = list(dict.fromkeys(args.seeds))
    return args


def run_names(configs: list[str]) -> list[str]:
    """Name configs by their files, with their folders where these agree."""
    paths = [Path(config).resolve() for config in configs]
    names = [path.name.removesuffix('.py') for path in paths]
    if len(set(names)) < len(names):
        # All of them, so that a run keeps its name in other company.
        names = [
            f'{path.parent.name}_{name}'
            for path, name in zip(paths, names, strict=True)
        ]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f'several configs would be called {", ".join(sorted(twice))}: '
            'name each once, or rename their files'
        )
    return names


def check_names(args: argparse.Namespace, names: list[str]) -> None:
    """Complete labels and baseline, before anything is trained."""
    if not names:
        raise ValueError(f'{args.work_dir} holds no CONFIG/seedN')
    args.labels = args.labels or names
    if len(set(args.labels)) != len(names):
        raise ValueError(
            f'--labels must be {len(names)} different ones, for '
            f'{", ".join(names)}'
        )
    args.baseline = args.baseline or names[0]
    if args.baseline in args.labels:
        args.baseline = names[args.labels.index(args.baseline)]
    if args.baseline not in names:
        raise ValueError(
            f'--baseline {args.baseline} is none of {", ".join(names)}'
        )


# ------------------------------------------------------------------- training


@dataclass
class Job:
    """A run that is to be trained."""

    name: str
    config: Path
    work_dir: Path
    lock: FolderLock

    def start(self) -> None:
        with open(self.log, 'a') as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    TRAIN,
                    self.config,
                    '--work-dir',
                    self.work_dir,
                    '--resume',
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                # If this tool is killed, the training goes on.
                pass_fds=self.lock.handles,
            )
        self.lock.name_holder(self.process.pid)

    @property
    def log(self) -> Path:
        return self.work_dir / 'train.log'


digest = cache(sha256)


def fingerprint(cfg: Config) -> dict:
    """Tell apart runs that are not meant to come out the same."""
    # A URL is as good as its content.
    digests = {n: digest(f) for n, f in weight_files(cfg.model).items()}
    only = digests.keys() == {TEACHER}
    return dict(
        config=cfg.pretty_text,
        teacher=digests[TEACHER] if only else digests or None,
    )


def prepare_job(name: str, config: str, seed: int, args) -> Job | None:
    """Make the folder of a run, or see that there is nothing left to do."""
    cfg = read_config(config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.merge_from_dict(dict(randomness=dict(seed=seed)))
    work_dir = args.work_dir / name / f'seed{seed}'
    lock = FolderLock(work_dir).acquire()
    given = fingerprint(cfg)
    dumped = work_dir / f'{Path(config).stem}.py'
    try:
        marker = read_marker(work_dir)
    except ValueError as error:
        marker = recover_marker(dumped, given)
        print(f'{error}: the run counts as not finished', flush=True)
    if marker is None:
        if work_dir.exists() and any(work_dir.iterdir()):
            raise ValueError(
                f'{work_dir} was not made by this tool: move it away, choose '
                'another --work-dir, or take it as it is by --report-only'
            )
    elif marker['fingerprint'] != given:
        what = (
            config_changes(marker['fingerprint']['config'], given['config'])
            or 'the weights of its teacher have changed since'
        )
        raise ValueError(
            f'{work_dir} was trained otherwise: {what}\n'
            'Remove it to train it again, choose another --work-dir, or take '
            'it as it is by --report-only'
        )
    elif marker['finished']:
        lock.release()
        return None
    work_dir.mkdir(parents=True, exist_ok=True)
    commit = describe_commit(ROOT)
    write_marker(work_dir, fingerprint=given, commit=commit, finished=False)
    write_text(dumped, cfg.pretty_text)
    return Job(f'{name}, seed {seed}', dumped, work_dir, lock)


def read_marker(work_dir: Path) -> dict | None:
    """What this tool wrote down of a run; None if it did not.

    Raises:
        ValueError: It cannot be read.
    """
    path = work_dir / MARKER
    if not path.is_file():
        return None
    marker = read_json(path)
    given = marker.get('fingerprint')
    if not isinstance(given, dict) or not isinstance(given.get('config'), str):
        raise ValueError(f'{path} cannot be read: it is not of this tool')
    return marker


def recover_marker(dumped: Path, given: dict) -> dict | None:
    """Take the config that a run was started with for its lost marker."""
    if not dumped.is_file():
        return None
    text = dumped.read_text(errors='replace')
    return dict(fingerprint=dict(given, config=text), finished=False)


def write_marker(work_dir: Path, **content) -> None:
    write_json(work_dir / MARKER, content)


def train(jobs: list[Job], at_once: int) -> list[Job]:
    """Train all; return those that failed."""
    waiting, running, failed = deque(jobs), [], []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.popleft()
                job.start()
                running.append(job)
                print(f'{job.name}: started, log in {job.log}', flush=True)
            time.sleep(0.1)
            for job in [
                job for job in running if job.process.poll() is not None
            ]:
                running.remove(job)
                if job.process.returncode:
                    failed.append(job)
                    job.lock.release()
                    text = job.log.read_text(errors='replace')
                    tail = text.splitlines()[-20:]
                    print(
                        '\n'.join(tail) + f'\n{job.name}: ended with '
                        f'{job.process.returncode}; all of it: {job.log}',
                        flush=True,
                    )
                else:
                    marker = read_marker(job.work_dir)
                    write_marker(job.work_dir, **marker | dict(finished=True))
                    job.lock.release()
                    print(f'{job.name}: done', flush=True)
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.wait()
    return failed


# -------------------------------------------------------------------- results


@dataclass
class Run:
    """What a run came to.

    Attributes:
        seed (int): Its seed.
        curve (dict[int, float]): Top-1 on held-out images by epoch.
        epochs (int, optional): How many it was meant to have.
        seconds (float): Wall time, of all its parts if it was resumed.
        commit (str, optional): What it was made with, if it was told.
        setting (str, optional): Its torch and device, if it was told.
        assistant (float, optional): Top-1 of its assistant, if it has one.
    """

    seed: int
    curve: dict[int, float]
    epochs: int | None = None
    seconds: float = 0.0
    commit: str | None = None
    setting: str | None = None
    assistant: float | None = None

    @property
    def epoch(self) -> int:
        return max(self.curve)

    @property
    def top1(self) -> float:
        return self.curve[self.epoch]

    @property
    def finished(self) -> bool:
        return self.epochs is not None and self.epoch >= self.epochs


@dataclass
class Row:
    """The runs of a config by seed."""

    name: str
    label: str
    runs: dict[int, Run]

    @property
    def finished(self) -> dict[int, Run]:
        return {seed: run for seed, run in self.runs.items() if run.finished}

    @property
    def scores(self) -> dict[int, float]:
        return {seed: run.top1 for seed, run in self.finished.items()}

    @property
    def assistants(self) -> list[float]:
        scores = [run.assistant for run in self.finished.values()]
        return [score for score in scores if score is not None]


def read_run(work_dir: Path, seed: int) -> Run | None:
    """Read what MMEngine wrote; None if there is no accuracy yet."""
    curve = read_curve(work_dir)
    if not curve:
        return None
    configs = sorted(work_dir.glob('*/vis_data/config.py'))
    if not configs:
        raise ValueError(
            f'{work_dir} lacks the config.py beside its scalars.json, which '
            'tells whether it is finished: copy the whole folder of the run'
        )
    loop = read_loop(configs[-1])
    logs = [
        log.read_text(errors='replace')
        for log in sorted(work_dir.glob('*/*.log'))
    ]
    assistant = read_curve(work_dir, 'assistant/accuracy/top1')
    try:
        marker = read_marker(work_dir) or {}
    except ValueError as error:
        print(f'{error}: the commit of the run is unknown')
        marker = {}
    return Run(
        seed,
        curve,
        loop.get('max_epochs', loop.get('max_iters')),
        sum(map(wall_time, logs)),
        marker.get('commit'),
        describe_setting(logs[-1]) if logs else None,
        assistant.get(max(curve)),
    )


def read_loop(config: Path) -> dict:
    """Read from the config of a run how long it is meant to be."""
    loop = read_dumped_config(config).get('train_cfg')
    if not isinstance(loop, dict):
        raise ValueError(
            f'{config} has no train_cfg, which tells whether the run is '
            'finished: copy the whole folder of the run again'
        )
    return loop


def wall_time(log: str) -> float:
    """Seconds from the first line of a log of MMEngine's to the last."""
    stamps = re.findall(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', log, re.M)
    if not stamps:
        return 0.0
    first, last = (
        datetime.strptime(stamp, '%Y/%m/%d %H:%M:%S')
        for stamp in (stamps[0], stamps[-1])
    )
    return (last - first).total_seconds()


def describe_setting(log: str) -> str | None:
    """Torch and device, as MMEngine writes them at the top of a log."""
    torch = re.search(r'^\s*PyTorch: (.+)$', log, re.M)
    gpus = re.findall(r'^\s*GPU [\d,]+: (.+)$', log, re.M)
    return torch and f'torch {torch[1]} on {", ".join(gpus) or "CPU"}'


def find_names(work_dir: Path) -> list[str]:
    runs = work_dir.glob('*/seed*')
    return sorted({run.parent.name for run in runs if run.is_dir()})


def read_rows(args: argparse.Namespace, names: list[str]) -> list[Row]:
    rows = []
    for name, label in zip(names, args.labels, strict=True):
        runs = {}
        for work_dir in (args.work_dir / name).glob('seed*'):
            seed = re.fullmatch(r'seed(\d+)', work_dir.name)
            if seed and (not args.seeds or int(seed[1]) in args.seeds):
                run = read_run(work_dir, int(seed[1]))
                if run is None:
                    print(f'{work_dir} holds no accuracy/top1: left blank')
                else:
                    runs[run.seed] = run
        rows.append(Row(name, label, dict(sorted(runs.items()))))
    if not any(row.runs for row in rows):
        raise ValueError(
            f'{args.work_dir} holds no runs of {", ".join(names)}: they '
            'belong in CONFIG/seedN'
        )
    return rows


# ------------------------------------------------------------------ reporting


def table_header(seeds: list[int]) -> list[str]:
    return ['', *(f'seed {seed}' for seed in seeds), 'mean ± std', 'n', 'gain']


def table_row(row: Row, seeds: list[int], baseline: Row) -> list[str]:
    scores = row.scores
    gain = None
    if row is not baseline:
        gain = mean_gain(scores, baseline.scores)
    return [
        row.label,
        *(cell(row.runs.get(seed)) for seed in seeds),
        mean_std(list(scores.values()), 2) if scores else '',
        str(len(scores)),
        '' if gain is None else f'{gain:+.2f}',
    ]


def cell(run: Run | None) -> str:
    if run is None:
        return ''
    if run.finished:
        return f'{run.top1:.2f}'
    return f'({run.top1:.2f} at {run.epoch} of {run.epochs})'


def print_table(title: str, header: list[str], cells: list[list[str]]) -> None:
    # Wide enough for all columns where the output is no terminal.
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(title=title, title_justify='left')
    for name in header:
        table.add_column(name, justify='right' if name else 'left')
    for row in cells:
        table.add_row(*row)
    console.print(table)


def write_csv(rows: list[Row], out: Path) -> None:
    with (
        replacing(out) as written,
        open(written, 'w', newline='') as file,
    ):
        writer = csv.writer(file)
        writer.writerow(
            ['config', 'seed', 'epoch', 'top1', 'seconds', 'finished']
        )
        for row in rows:
            for run in row.runs.values():
                state = 'yes' if run.finished else 'no'
                writer.writerow(
                    [
                        row.name,
                        run.seed,
                        run.epoch,
                        run.top1,
                        f'{run.seconds:.0f}',
                        state,
                    ]
                )


def describe_all(values: list[str | None]) -> str:
    """Join what differs; say for how many runs nothing is known."""
    known = sorted({value for value in values if value})
    unknown = values.count(None)
    if unknown:
        known.append(f'unknown for {unknown} of {len(values)} runs')
    return '; '.join(known)


def write_report(
    args: argparse.Namespace,
    rows: list[Row],
    baseline: Row,
    header: list[str],
    cells: list[list[str]],
) -> Path:
    runs = [run for row in rows for run in row.runs.values()]
    finished = [run.seconds for run in runs if run.finished]
    report = [
        f'# {args.title}',
        '',
        *markdown_table(header, cells),
        '',
        'Top-1 in % on held-out images after the last epoch, with the '
        'standard deviation of the sample over n seeds. The gain is over '
        f'{baseline.label}, the mean over the seeds that both have. Runs in '
        'brackets are not finished and do not count.',
        '',
        '![Curves](curves.png)',
        '',
        f'- command: `python tools/analysis_tools/compare.py '
        f'{shlex.join(sys.argv[1:])}`',
        f'- seeds: {", ".join(map(str, sorted({run.seed for run in runs})))}',
        f'- runs made with: {describe_all([run.setting for run in runs])}',
        f'- runs made at commit: {describe_all([run.commit for run in runs])}',
        *(
            [f'- seconds a run: {statistics.median(finished):.0f} (median)']
            if finished
            else []
        ),
        f'- report made on: {describe_machine()}',
        f'- report made at commit: {describe_commit(ROOT)}',
    ]
    path = args.work_dir / 'report.md'
    write_text(path, '\n'.join(report) + '\n')
    return path


def report(args: argparse.Namespace, names: list[str]) -> None:
    rows = read_rows(args, names)
    (baseline,) = (row for row in rows if row.name == args.baseline)
    seeds = args.seeds or sorted({s for row in rows for s in row.runs})
    header = table_header(seeds)
    cells = [table_row(row, seeds, baseline) for row in rows]
    if any(row.assistants for row in rows):
        header.append('assistant')
        for row, line in zip(rows, cells, strict=True):
            scores = row.assistants
            line.append(mean_std(scores, 2) if scores else '')
    write_csv(rows, args.work_dir / 'results.csv')
    draw_curves(
        {
            row.label: [run.curve for run in row.finished.values()]
            for row in rows
        },
        args.work_dir / 'curves.png',
        title=args.title,
    )
    path = write_report(args, rows, baseline, header, cells)
    print_table(args.title, header, cells)
    print(f'{path}: the report')


def main() -> int:
    args = parse_args()
    failed = []
    names = run_names(args.configs) or find_names(args.work_dir)
    check_names(args, names)
    if not args.report_only:
        args.seeds = args.seeds or [0]
        jobs = [
            prepare_job(name, config, seed, args)
            for name, config in zip(names, args.configs, strict=True)
            for seed in args.seeds
        ]
        failed = train([job for job in jobs if job], args.jobs)
    report(args, names)
    if failed:
        print('failed: ' + '; '.join(job.name for job in failed))
    return 1 if failed else 0


if __name__ == '__main__':
    try:
        with Command():
            sys.exit(main())
    except KeyboardInterrupt:
        raise SystemExit('\ninterrupted; run it again to go on') from None
