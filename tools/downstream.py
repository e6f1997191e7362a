"""Train a detector or segmentor on the backbone of a distilled student.

    downstream.py CONFIG --student RUN_OR_CHECKPOINT
    downstream.py CONFIG --student work_dirs/kd/seed{seed} \\
        --baseline work_dirs/alone/seed{seed} none --seed 0 1 2

RUN_OR_CHECKPOINT is the work directory of a distillation, one of its
checkpoints, an exported student, or any checkpoint of a classifier of
MMPretrain. What it lacks of the config's backbone, or has beyond it, is an
error before anything is trained.

Each run is trained and evaluated in WORK_DIR/NAME/seedN, where NAME is
student, baseline or scratch. Started again, the tool skips runs that are
finished and resumes those that are not. It writes report.md and results.json
into WORK_DIR.

On several processes:

    TOOL=downstream.py tools/dist_train.sh CONFIG 8 --student ...
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import (
    broadcast_object_list,
    init_dist,
    is_distributed,
    is_main_process,
)
from rich.console import Console
from rich.table import Table

import mmcakd  # noqa: F401
from mmcakd.engine.launcher import (
    check_shares,
    parse_run_args,
    prepare_cpu_launcher,
)
from mmcakd.engine.safeguards import add_safeguards
from mmcakd.utils import Command, FolderLock, describe_commit
from mmcakd.utils.downstream import (
    SCRATCH,
    DownstreamRun,
    LoadedBackbone,
    load_backbone,
    mark_run,
    plan_run,
    read_downstream_config,
    read_metrics,
    revert_sync_bn,
    run_config,
    tabulate,
    train_run,
    write_report,
)

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('config', help='of a detector or segmentor')
    parser.add_argument(
        '--student',
        required=True,
        metavar='RUN_OR_CHECKPOINT',
        help='whose backbone is used; {seed} stands for the seed',
    )
    parser.add_argument(
        '--baseline',
        nargs='+',
        default=[],
        metavar='RUN_OR_CHECKPOINT',
        help='train from the undistilled student, too; none stands for a\n'
        'backbone from scratch, and may come besides',
    )
    parser.add_argument(
        '--which',
        default='last',
        help='which checkpoint of a work directory: last, best, or the metric '
        'it is the best by, e.g. accuracy/top1 (default: last)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='default: work_dirs/ and the name of the config',
    )
    parser.add_argument(
        '--seed',
        type=int,
        nargs='+',
        default=[0],
        help='one or several; all are trained from each (default: 0)',
    )
    args = parse_run_args(parser)
    if args.student == SCRATCH:
        parser.error('--student needs weights; none is for --baseline')
    if len(args.baseline) - args.baseline.count(SCRATCH) > 1 or (
        args.baseline.count(SCRATCH) > 1
    ):
        parser.error('--baseline takes one student, or none, or both')
    if args.work_dir is None:
        args.work_dir = Path('work_dirs') / Path(args.config).stem
    args.seed = list(dict.fromkeys(args.seed))
    return args


def say(text: str) -> None:
    if is_main_process():
        print(text, flush=True)


def start_processes(cfg: Config, launcher: str) -> None:
    cfg.launcher = launcher
    if launcher == 'none':
        return  # MMEngine itself reverts synchronised BatchNorm
    check_shares(cfg)
    reverted = get_device() == 'cpu' and revert_sync_bn(cfg)
    prepare_cpu_launcher(cfg)
    if not is_distributed():
        init_dist(launcher, **cfg.get('env_cfg', {}).get('dist_cfg', {}))
    if reverted:
        say('BatchNorm is not synchronised: each process has its own')


def on_first_process(function: Callable):
    """Let the first process act, and give all what it returned or raised."""
    outcome = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except (OSError, RuntimeError, ValueError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    result, error = outcome
    if error is not None:
        # It is told once.
        raise error if is_main_process() else SystemExit(1)
    return result


def plan(args: argparse.Namespace) -> list[DownstreamRun]:
    """All runs, in the order of the table."""
    sources = dict.fromkeys(['scratch', 'baseline', 'student'])
    sources['student'] = args.student
    for source in args.baseline:
        sources['scratch' if source == SCRATCH else 'baseline'] = source
    return [
        plan_run(name, source, seed, args.work_dir, args.which)
        for name, source in sources.items()
        if source
        for seed in args.seed
    ]


def check(cfg: Config, run: DownstreamRun) -> LoadedBackbone | None:
    if run.checkpoint is None:
        return None
    return load_backbone(cfg, run.checkpoint)


def describe(run: DownstreamRun, backbone: LoadedBackbone | None) -> str:
    label = f'{run.name}, seed {run.seed}'
    if backbone is None:
        return f'{label}: backbone from scratch'
    notes = [f'{len(backbone.weights)} weights from {run.checkpoint}']
    notes += [
        f'{name} resized from {given} to {own}'
        for name, (given, own) in backbone.resized.items()
    ]
    for kind in ('new', 'unused'):
        if names := getattr(backbone, kind):
            notes.append(f'{kind}: {", ".join(names)}')
    return f'{label}: {"; ".join(notes)}'


def report(args: argparse.Namespace, results: list) -> None:
    command = shlex.join(['python', 'tools/downstream.py', *sys.argv[1:]])
    path = write_report(
        args.work_dir, args.config, results, command, describe_commit(ROOT)
    )
    header, rows = tabulate(results)
    # Wide enough for all columns where the output is no terminal.
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(title=Path(args.config).stem, title_justify='left')
    for name in header:
        table.add_column(name, justify='right' if name else 'left')
    for row in rows:
        table.add_row(*row)
    console.print(table)
    print(f'{path}: the report')


def main(command: Command, locks: ExitStack) -> int:
    args = parse_args()
    given = read_downstream_config(args.config, args.cfg_options)
    cfg = deepcopy(given)
    add_safeguards(cfg)
    start_processes(cfg, args.launcher)
    runs = on_first_process(lambda: plan(args))

    def keep_folders() -> None:
        for run in runs:
            locks.enter_context(FolderLock(run.work_dir))

    described = on_first_process(
        lambda: [describe(run, check(cfg, run)) for run in runs]
    )
    say('\n'.join(described))
    on_first_process(keep_folders)
    found = on_first_process(
        lambda: [read_metrics(given, run) for run in runs]
    )

    results = []
    for run, metrics in zip(runs, found, strict=True):
        if metrics is not None:
            say(f'{run.work_dir}: finished already')
        else:
            if is_main_process():
                mark_run(given, run)
            backbone = check(cfg, run)
            metrics = train_run(run_config(cfg, run), backbone, command)
            if is_main_process():
                mark_run(given, run, metrics)
        results.append((run, metrics))
    if is_main_process():
        report(args, results)
    return 0


if __name__ == '__main__':
    try:
        with Command() as command, ExitStack() as locks:
            sys.exit(main(command, locks))
    except KeyboardInterrupt:
        raise SystemExit('\ninterrupted; run it again to go on') from None
