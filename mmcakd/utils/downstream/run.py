"""A training of a detector or segmentor, and what is kept of it."""

import gc
from copy import deepcopy
from dataclasses import dataclass
from logging import WARNING
from numbers import Real
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..command_line import Command
from ..config_text import read_config_text, read_dumped_config
from ..experiments import config_changes
from ..files import read_json, sha256, write_json
from .backbone import LoadedBackbone
from .config import revert_sync_bn
from .student import find_student

SCRATCH = 'none'
MARKER = 'downstream.json'


@dataclass(frozen=True)
class DownstreamRun:
    """A detector or segmentor to be trained.

    Attributes:
        name (str): 'student', 'baseline' or 'scratch'.
        seed (int): Its seed.
        source (str): Where its backbone comes from, as it was given.
        work_dir (Path): Its folder.
        checkpoint (Path, optional): The weights of its backbone; None starts
            it from scratch.
        digest (str, optional): SHA-256 of this file.
    """

    name: str
    seed: int
    source: str
    work_dir: Path
    checkpoint: Path | None = None
    digest: str | None = None


def plan_run(
    name: str,
    source: str,
    seed: int,
    work_dir: str | Path,
    which: str = 'last',
) -> DownstreamRun:
    """Find the weights that a run starts from.

    Args:
        name (str): Of the run.
        source (str): See :func:`find_student`; ``{seed}`` stands for the seed
            and 'none' for a backbone from scratch.
        seed (int): Of the run.
        work_dir (str | Path): Of all runs.
        which (str): See :func:`find_student`. Defaults to 'last'.

    Returns:
        DownstreamRun: The run.
    """
    folder = Path(work_dir) / name / f'seed{seed}'
    if source == SCRATCH:
        return DownstreamRun(name, seed, source, folder)
    source = source.replace('{seed}', str(seed))
    checkpoint = find_student(source, which)
    return DownstreamRun(
        name, seed, source, folder, checkpoint, sha256(checkpoint)
    )


def run_config(cfg: Config, run: DownstreamRun) -> Config:
    """Make the config that trains a run, and goes on with it if it began."""
    cfg = deepcopy(cfg)
    backbone = cfg.model.backbone
    if run.checkpoint is None:
        # As the network initialises itself, and then nothing can stay frozen.
        del backbone['init_cfg']
        if 'frozen_stages' in backbone:
            backbone.frozen_stages = -1
        if 'norm_eval' in backbone:
            backbone.norm_eval = False
    else:
        backbone.init_cfg.checkpoint = str(run.checkpoint)
    cfg.randomness = {**cfg.get('randomness', {}), 'seed': run.seed}
    cfg.work_dir = str(run.work_dir)
    cfg.resume = True
    # Both are global under their names: each run needs its own.
    cfg.experiment_name = f'{run.name}_seed{run.seed}'
    if 'visualizer' in cfg:
        cfg.visualizer.name = cfg.experiment_name
    return cfg


class DownstreamHook(Hook):
    """Check the backbone before the first step; keep the last metrics.

    Args:
        backbone (LoadedBackbone, optional): What the backbone has to hold.
    """

    def __init__(self, backbone: LoadedBackbone | None) -> None:
        self.backbone = backbone
        self.metrics: dict = {}
        self.evaluated_at: int | None = None

    def before_train(self, runner) -> None:
        # One that is resumed has been checked, and has learned since.
        if self.backbone is not None and runner.iter == 0:
            model = runner.model
            model = model.module if is_model_wrapper(model) else model
            self.backbone.verify(model.backbone)
            runner.logger.info(
                f'{len(self.backbone.weights)} weights of the backbone are '
                "the student's to the bit"
            )

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        self.metrics = dict(metrics)
        self.evaluated_at = runner.iter


def train_run(
    cfg: Config,
    backbone: LoadedBackbone | None,
    command: Command | None = None,
) -> dict:
    """Train and evaluate by MMEngine's Runner.

    Args:
        cfg (Config): See :func:`run_config`.
        backbone (LoadedBackbone, optional): What the backbone has to hold
            when training starts.
        command (Command, optional): The command line that trains.

    Returns:
        dict: The metrics of the final weights.
    """
    build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
    runner = build(cfg)
    hook = DownstreamHook(backbone)
    runner.register_hook(hook)
    if command is not None:
        command.trains(runner)
    runner.train()
    if hook.evaluated_at != runner.iter:
        runner.val()
    metrics = {
        name: float(value)
        for name, value in hook.metrics.items()
        if isinstance(value, Real)
    }
    del runner
    # Before the next run asks for memory.
    gc.collect()
    torch.cuda.empty_cache()
    return metrics


def fingerprint(cfg: Config, run: DownstreamRun) -> dict:
    """Tell apart runs that are not meant to come out the same."""
    return dict(config=cfg.pretty_text, seed=run.seed, weights=run.digest)


def read_metrics(cfg: Config, run: DownstreamRun) -> dict | None:
    """Read what a finished run came to.

    Args:
        cfg (Config): As it was read.
        run (DownstreamRun): The run.

    Returns:
        dict, optional: Its metrics; None if it is not finished, or not begun.

    Raises:
        ValueError: Its folder holds another one.
    """
    marker = run.work_dir / MARKER
    if not marker.is_file():
        if run.work_dir.exists() and any(run.work_dir.iterdir()):
            raise ValueError(
                f'{run.work_dir} was not made by this tool: move it away, or '
                'choose another --work-dir'
            )
        return None
    try:
        found = read_json(marker)
        if not {'fingerprint', 'metrics'} <= found.keys():
            raise ValueError(f'{marker} cannot be read: it is of another tool')
    except ValueError as error:
        _check_dumped_config(cfg, run)
        print_log(
            f'{error}: the run counts as not finished', 'current', WARNING
        )
        return None
    before, now = found['fingerprint'], fingerprint(cfg, run)
    if before != now:
        what = (
            config_changes(before['config'], now['config'])
            or 'its backbone started from other weights'
        )
        raise _trained_otherwise(run, what)
    return found['metrics']


def _check_dumped_config(cfg: Config, run: DownstreamRun) -> None:
    """Take the config that MMEngine left in a run for its lost marker."""
    now = run_config(cfg, run).pretty_text
    for path in run.work_dir.glob('*.py'):
        texts = []
        for dumped in (
            read_dumped_config(path),
            read_config_text(now, run.work_dir),
        ):
            # What depends on the processes that it was trained with.
            dumped.pop('launcher', None)
            revert_sync_bn(dumped)
            texts.append(dumped.pretty_text)
        if what := config_changes(*texts):
            raise _trained_otherwise(run, what)


def _trained_otherwise(run: DownstreamRun, what: str) -> ValueError:
    return ValueError(
        f'{run.work_dir} was trained otherwise: {what}\nRemove it to train it '
        'again, or choose another --work-dir'
    )


def mark_run(
    cfg: Config, run: DownstreamRun, metrics: dict | None = None
) -> None:
    """Write down that a run began or, with metrics, that it is finished."""
    run.work_dir.mkdir(parents=True, exist_ok=True)
    content = dict(fingerprint=fingerprint(cfg, run), metrics=metrics)
    write_json(run.work_dir / MARKER, content)
