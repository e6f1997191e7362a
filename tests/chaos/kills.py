"""Kill training runs at random, and at every write; see what is left.

    python tests/chaos/kills.py --trials 200

A run of two epochs is killed, resumed, and compared with one that was left
alone: the same weights, bit by bit, and an export of them. After each kill,
every checkpoint in the folder must be one that loads. Half of the kills come
at the calls by which files reach the disk, the others at random instants.
Each trial is forked from a process that has imported everything.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mmcakd
from mmcakd.engine import rescale_epochs
from mmcakd.engine.safeguards import add_safeguards
from mmcakd.models.teachers import read_checkpoint

ROOT = Path(mmcakd.__file__).parents[1]
#: One with two optimizers in turns, one with a frozen tail, one with an
#: assistant, and the plainest.
METHODS = {
    'KD': 'configs/quickstart/kd.py',
    'ScaleKD': 'configs/quickstart/scalekd.py',
    'CAKD': 'configs/shapes/cakd/gl_pca_mv.py',
    'TAS': 'configs/shapes/tas/vit_resnet.py',
}
#: What makes a file appear, vanish or change its name.
CALLS = ('replace', 'fsync', 'unlink', 'remove', 'rename')
KILLED = -signal.SIGKILL


def make_config(method: str, data: Path, work_dir: Path) -> Config:
    """Two epochs of five steps, one checkpoint, and all that a run writes."""
    cfg = Config.fromfile(ROOT / METHODS[method])
    rescale_epochs(cfg, 2)
    cfg.merge_from_dict(
        {
            'model.teacher_ckpt': str(ROOT / cfg.model.teacher_ckpt),
            'train_dataloader.batch_size': 12,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.checkpoint.max_keep_ckpts': 1,
            'default_hooks.checkpoint.save_best': 'auto',
            'default_hooks.logger.interval': 1,
            'train_cfg.val_interval': 1,
            'custom_hooks': [dict(type='EMAHook', momentum=0.1)],
            'work_dir': str(work_dir),
            'resume': True,
            'experiment_name': f'{method}_{time.monotonic_ns()}',
            'log_level': 'ERROR',
        }
    )
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.dataset.data_root = str(data)
        loader.num_workers, loader.persistent_workers = 0, False
    add_safeguards(cfg)
    return cfg


@contextmanager
def counting(at: int | None) -> Iterator[list[str]]:
    """Note the calls that change files; die before the one that is told."""
    seen: list[str] = []
    originals = {name: getattr(os, name) for name in CALLS}

    def watch(name: str) -> Callable:
        def call(*args, **kwargs):
            if len(seen) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(name)
            return originals[name](*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, watch(name))
    try:
        yield seen
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def fork(function: Callable[[], None], log: Path) -> int:
    """Start a process; what it says goes into a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(log, 'a') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(cfg: Config, at: int | None = None, count: Path | None = None):
    """A run, in a process of its own."""

    def run() -> None:
        torch.set_num_threads(1)
        with counting(at) as seen:
            Runner.from_cfg(cfg).train()
        if count is not None:
            count.write_text(str(len(seen)))

    return run


@dataclass
class Reference:
    """A run that was left alone."""

    weights: dict
    exported: dict
    seconds: float
    writes: int


class Trials:
    """Kills of one method, and what came of them.

    Args:
        method (str): One of :data:`METHODS`.
        data (Path): The rendered images.
        folder (Path): Where runs go.
    """

    def __init__(self, method: str, data: Path, folder: Path) -> None:
        self.method, self.data, self.folder = method, data, folder
        work_dir = folder / 'unbroken'
        work_dir.mkdir(parents=True)
        cfg = make_config(method, data, work_dir)
        count = folder / 'writes'
        start = time.perf_counter()
        code = wait(fork(train(cfg, count=count), folder / 'unbroken.log'))
        if code:
            raise RuntimeError((folder / 'unbroken.log').read_text()[-2000:])
        self.reference = Reference(
            torch.load(work_dir / 'epoch_2.pth'),
            torch.load(work_dir / 'student.pth'),
            time.perf_counter() - start,
            int(count.read_text()),
        )

    def plan(self, count: int, random_state: random.Random) -> list:
        """Writes spread over the run, and instants at random."""
        writes = self.reference.writes
        half = min(count // 2, writes)
        spread = [
            round(i * (writes - 1) / max(half - 1, 1)) for i in range(half)
        ]
        instants = [
            random_state.uniform(0.05, 0.95) * self.reference.seconds
            for _ in range(count - half)
        ]
        return [('write', at) for at in spread] + [
            ('instant', at) for at in instants
        ]

    def run(self, kind: str, at: float) -> str | None:
        """Kill a run, look at what is left, and go on with it.

        Returns:
            str, optional: What went wrong.
        """
        name = f'{kind}_{at:.3f}'
        work_dir, log = self.folder / name, self.folder / f'{name}.log'
        cfg = make_config(self.method, self.data, work_dir)
        pid = fork(train(cfg, at if kind == 'write' else None), log)
        if kind == 'instant':
            time.sleep(at)
            os.kill(pid, signal.SIGKILL)
        code = wait(pid)
        if code not in (KILLED, 0):
            return f'{name}: ended with {code}: {log.read_text()[-800:]}'
        for path in work_dir.glob('*.pth'):
            if not path.name.startswith('.'):
                try:
                    read_checkpoint(path)
                except RuntimeError as error:
                    return f'{name}: {error}'
        cfg = make_config(self.method, self.data, work_dir)
        code = wait(fork(train(cfg), log))
        if code:
            return f'{name}: cannot go on: {log.read_text()[-800:]}'
        return self.compare(name, work_dir)

    def compare(self, name: str, work_dir: Path) -> str | None:
        found = torch.load(work_dir / 'epoch_2.pth')
        for part in ('state_dict', 'ema_state_dict', 'optimizer'):
            for where in differences(
                found[part], self.reference.weights[part], part
            ):
                return f'{name}: {where} differs'
        exported = torch.load(work_dir / 'student.pth')['state_dict']
        for where in differences(
            exported, self.reference.exported['state_dict'], 'student.pth'
        ):
            return f'{name}: {where} differs'
        left = [path.name for path in work_dir.glob('.*.pth')]
        return f'{name}: left behind {left}' if left else None


def differences(a, b, path: str) -> Iterator[str]:
    """Places at which two nested states differ."""
    if isinstance(a, dict):
        if a.keys() != b.keys():
            yield f'{path}: keys'
            return
        for key in a:
            yield from differences(a[key], b[key], f'{path}.{key}')
    elif isinstance(a, list | tuple):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f'{path}[{index}]')
    elif not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
        yield path


def render(out: Path) -> Path:
    """Sixty images to train on."""
    tool = ROOT / 'tools' / 'dataset_converters' / 'render_shapes.py'
    counts = ['--num-train', '60', '--num-val', '24']
    subprocess.run(
        [sys.executable, tool, out, *counts], check=True, capture_output=True
    )
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--trials', type=int, default=200)
    parser.add_argument(
        '--methods', nargs='+', choices=METHODS, default=list(METHODS)
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table('method', 'kills', 'at writes', 'lost', 'seconds a run')
    lost_of_all = []
    with tempfile.TemporaryDirectory() as folder:
        data = render(Path(folder) / 'shapes')
        for method in args.methods:
            trials = Trials(method, data, Path(folder) / method)
            plan = trials.plan(
                args.trials // len(args.methods), random.Random(args.seed)
            )
            lost = [
                said
                for kind, at in track(plan, method)
                if (said := trials.run(kind, at)) is not None
            ]
            lost_of_all += [f'{method}: {said}' for said in lost]
            table.add_row(
                method,
                str(len(plan)),
                str(sum(kind == 'write' for kind, _ in plan)),
                str(len(lost)),
                f'{trials.reference.seconds:.1f}',
            )
    Console().print(table)
    print('\n'.join(lost_of_all))
    return 1 if lost_of_all else 0


if __name__ == '__main__':
    sys.exit(main())
