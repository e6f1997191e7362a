"""From a distilled student to a detector or segmentor with its backbone."""

import ast
import gc
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from numbers import Real
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmcakd.models.teachers import read_checkpoint
from mmcakd.models.teachers.checkpoint import DERIVED_BUFFERS

from .experiments import (
    config_changes,
    describe_machine,
    markdown_table,
    mean_gain,
    mean_std,
)
from .export import STUDENT, export_student, find_checkpoint
from .files import sha256, write_text

SCRATCH = 'none'
MARKER = 'downstream.json'

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

_SYNC_BN = ('SyncBN', 'MMSyncBN')

_OTHER_PACKAGES = dict(
    TimmClassifier='timm',
    TorchvisionClassifier='torchvision',
    HuggingFaceClassifier='Hugging Face',
)


# ------------------------------------------------------------------ the config


def read_downstream_config(
    path: str | Path, options: dict | None = None
) -> Config:
    """Read the config of a detector or segmentor.

    Args:
        path (str | Path): The config file.
        options (dict, optional): Settings that override it.

    Returns:
        Config: The config.

    Raises:
        ImportError: MMDetection, MMSegmentation or the compiled operators of
            MMCV are needed and missing.
        ValueError: ``model.backbone`` does not say where its weights go.
    """
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        missing = [name for name in ('mmdet', 'mmseg') if not find_spec(name)]
        if not missing:
            raise
        raise ImportError(_set_up(path, str(error))) from error
    cfg.merge_from_dict(options or {})
    scope = cfg.get('default_scope')
    if scope in ('mmdet', 'mmseg'):
        if not find_spec(scope):
            raise ImportError(_set_up(path, f'{scope} is not installed'))
        if not find_spec('mmcv._ext'):
            raise ImportError(
                _set_up(path, 'mmcv is installed without its operators')
            )

    backbone = cfg.get('model', {}).get('backbone')
    init_cfg = (backbone or {}).get('init_cfg')
    if not isinstance(init_cfg, dict) or not init_cfg.get('prefix'):
        raise ValueError(
            f'{path} does not say how model.backbone takes the weights of a '
            'classifier, which are called backbone.*: it needs init_cfg=dict('
            "type='Pretrained', checkpoint='student.pth', prefix='backbone.')"
        )
    if cfg.get('load_from'):
        raise ValueError(
            f"load_from of {path} would replace the student's weights: set "
            'it to None'
        )
    if cfg.get('val_evaluator') is None:
        raise ValueError(f'{path} does not evaluate: give it a val_evaluator')
    return cfg


def _set_up(path: str | Path, problem: str) -> str:
    return (
        f'{path} needs MMDetection or MMSegmentation and the compiled '
        f'operators of MMCV ({problem}): bash tools/setup_downstream.sh '
        'installs them'
    )


def revert_sync_bn(cfg: Config) -> bool:
    """Replace synchronised BatchNorm in a model's config by the plain one.

    It works between processes on accelerators only. The weights have the same
    names.

    Args:
        cfg (Config): Changed in place.

    Returns:
        bool: Whether there was any.
    """
    found = False

    def visit(node) -> None:
        nonlocal found
        if isinstance(node, dict):
            if node.get('type') in _SYNC_BN:
                node['type'] = 'BN'
                found = True
            node = node.values()
        elif not isinstance(node, (list, tuple)):
            return
        for item in node:
            visit(item)

    visit(cfg.model)
    return found


# ----------------------------------------------------------------- the student


def find_student(source: str | Path, which: str = 'last') -> Path:
    """Find the file with a student's weights, or export it.

    An export is ``student.pth`` in the work directory, if it is of the
    checkpoint that is asked for, or else a new file beside that checkpoint.

    Args:
        source (str | Path): Work directory of a distillation or of a
            classifier, one of its checkpoints, or an exported student.
        which (str): Which checkpoint of a work directory, 'last' or 'best'.
            Defaults to 'last'.

    Returns:
        Path: A checkpoint whose weights are called ``backbone.*`` if the
        student is a classifier of MMPretrain.
    """
    if str(source).startswith(('http://', 'https://')):
        raise ValueError(f'download {source} and give the file')
    source = Path(source)
    if not source.is_dir():
        return _export_if_needed(source)
    exported = source / 'student.pth'
    try:
        checkpoint = find_checkpoint(source, which)
    except FileNotFoundError:
        if which == 'last' and exported.is_file():
            return exported
        raise
    if _is_export_of(exported, checkpoint):
        return exported
    return _export_if_needed(checkpoint)


def _export_if_needed(checkpoint: Path) -> Path:
    weights = read_checkpoint(checkpoint)['state_dict']
    if not any(key.startswith(STUDENT) for key in weights):
        return checkpoint
    exported = checkpoint.with_name(f'{checkpoint.stem}_student.pth')
    if _is_export_of(exported, checkpoint):
        return exported
    return export_student(checkpoint)


def _is_export_of(exported: Path, checkpoint: Path) -> bool:
    if (
        not exported.is_file()
        or exported.stat().st_mtime < checkpoint.stat().st_mtime
    ):
        return False
    made, trained = (
        read_checkpoint(path)['meta'] for path in (exported, checkpoint)
    )
    return all(made.get(key) == trained.get(key) for key in ('epoch', 'iter'))


# --------------------------------------------------------- the backbone


@dataclass
class LoadedBackbone:
    """What a backbone is to hold once it has taken a student's weights.

    Attributes:
        weights (dict[str, torch.Tensor]): By name in the backbone. The
            student's own, but for those that were resized.
        resized (dict[str, tuple]): Shapes in the student and here of what
            MMPretrain resizes on loading.
        new (list[str]): What the student does not have, as the config says.
        unused (list[str]): What the backbone leaves out, likewise.
    """

    weights: dict[str, torch.Tensor]
    resized: dict[str, tuple] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def verify(self, backbone: nn.Module) -> None:
        """Insist that a backbone holds these weights to the bit.

        Raises:
            RuntimeError: Some differ. The message names them.
        """
        held = backbone.state_dict()
        differing = [
            name
            for name, weight in self.weights.items()
            if not torch.equal(held[name].cpu(), weight.to(held[name].dtype))
        ]
        if differing:
            raise RuntimeError(
                f'{_some(differing)} of the weights of the backbone are not '
                "the student's when training starts: something loads or "
                'initialises it after its init_cfg'
            )


def load_backbone(cfg: Config, checkpoint: str | Path) -> LoadedBackbone:
    """Load a student into the backbone of a config, and insist that it fits.

    The backbone is built alone. Its weights and the student's have to agree
    in names and shapes, but for

    - what ``backbone_weights`` of the config declares, as prefixes: ``new``
      is in this backbone alone, ``unused`` in the student alone;
    - buffers that a backbone computes for itself, and counters of BatchNorm;
    - what MMPretrain resizes while it loads, such as position embeddings.

    Args:
        cfg (Config): See :func:`read_downstream_config`.
        checkpoint (str | Path): See :func:`find_student`.

    Returns:
        LoadedBackbone: The weights, and what was resized.

    Raises:
        ValueError: It does not fit. The message names weights and the cure.
    """
    weights = _backbone_weights(cfg, checkpoint)
    settings = deepcopy(cfg.model.backbone)
    settings.pop('init_cfg')
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    backbone = MODELS.build(settings)
    try:
        missing, unexpected, misshapen = _load(backbone, weights)
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        # MMPretrain's hooks, about sizes that they cannot bring together.
        why = f'{type(error).__name__}: {error}'
        raise _misfit(cfg, checkpoint, [why]) from error

    own = backbone.state_dict()
    absent = {*missing, *misshapen}
    loaded = {
        name: weight for name, weight in own.items() if name not in absent
    }
    declared = cfg.get('backbone_weights') or {}
    new, unused = (tuple(declared.get(key, ())) for key in ('new', 'unused'))
    problems = {
        'missing': _undeclared(missing, new),
        'unexpected': _undeclared(unexpected, unused),
        'of another shape': [
            f'{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}'
            for name in misshapen
        ],
        'not finite': [
            name
            for name, weight in loaded.items()
            if not weight.isfinite().all()
        ],
    }
    if any(problems.values()):
        raise _misfit(
            cfg,
            checkpoint,
            [
                f'{problem}: {_some(names)}'
                for problem, names in problems.items()
                if names
            ],
        )

    resized = {}
    for name in weights.keys() & loaded.keys():
        given, taken = weights[name], loaded[name]
        if DERIVED_BUFFERS.search(name):
            continue
        if given.shape == taken.shape:
            loaded[name] = given
        else:
            resized[name] = tuple(given.shape), tuple(taken.shape)
    return LoadedBackbone(
        loaded,
        resized,
        new=[name for name in missing if name.startswith(new)],
        unused=[name for name in unexpected if name.startswith(unused)],
    )


def _load(
    backbone: nn.Module, weights: 'OrderedDict[str, torch.Tensor]'
) -> tuple[list[str], list[str], list[str]]:
    """Load what fits; name what is missing, unexpected, of another shape."""
    own = backbone.state_dict()
    # What is still NaN afterwards was not loaded.
    for weight in own.values():
        if weight.is_floating_point():
            weight.fill_(torch.nan)
    misshapen = []
    try:
        keys = backbone.load_state_dict(weights, strict=False)
    except RuntimeError:
        # torch reports wrong shapes alone. Set aside, they show the rest.
        differing = [
            name
            for name, weight in weights.items()
            if name in own and own[name].shape != weight.shape
        ]
        misshapen = [name for name in differing if own[name].isnan().all()]
        keys = backbone.load_state_dict(
            OrderedDict(
                (name, weight)
                for name, weight in weights.items()
                if name not in misshapen and not DERIVED_BUFFERS.search(name)
            ),
            strict=False,
        )
    missing = [name for name in keys.missing_keys if name not in misshapen]
    return missing, keys.unexpected_keys, misshapen


def _undeclared(names: Sequence[str], declared: tuple[str, ...]) -> list[str]:
    return [
        name
        for name in names
        if not name.startswith(declared) and not DERIVED_BUFFERS.search(name)
    ]


def _backbone_weights(
    cfg: Config, checkpoint: str | Path
) -> 'OrderedDict[str, torch.Tensor]':
    """Pick what the config's ``init_cfg`` will load from a checkpoint."""
    saved = read_checkpoint(checkpoint)
    state_dict = saved['state_dict']
    prefix = cfg.model.backbone.init_cfg.prefix
    prefix = prefix if prefix.endswith('.') else f'{prefix}.'
    weights = OrderedDict(
        (key.removeprefix(prefix), value)
        for key, value in state_dict.items()
        if key.startswith(prefix)
    )
    if weights:
        return weights

    problem = f'{checkpoint} holds no weights called {prefix}*'
    if any(key.startswith('backbone.') for key in state_dict):
        raise ValueError(
            f'{problem}, but backbone.*: {cfg.filename} needs '
            "model.backbone.init_cfg.prefix='backbone.'"
        )
    kind = str(_student_model(saved).get('type')).split('.')[-1]
    if kind in _OTHER_PACKAGES:
        raise ValueError(
            f'{problem}: its student is a {kind}, a network of '
            f'{_OTHER_PACKAGES[kind]}, and the backbone of '
            f'{cfg.filename} is not. Distil into the same network of '
            'MMPretrain, as those of configs/_base_/students are'
        )
    raise ValueError(
        f'{problem}, but others: {_some(list(state_dict))}. It is no '
        'checkpoint of a classifier of MMPretrain. Weights of timm, '
        'torchvision or Hugging Face have other names: take those of '
        "MMPretrain's model zoo"
    )


def _student_model(saved: dict) -> dict:
    """The model that a checkpoint says it is of; empty if it does not.

    Its config is text that may come from anywhere: it is read, not run.
    """
    try:
        lines = ast.parse(saved['meta'].get('cfg', '')).body
    except SyntaxError:
        return {}
    models = [
        _plain_value(line.value)
        for line in lines
        if isinstance(line, ast.Assign)
        and getattr(line.targets[0], 'id', None) == 'model'
    ]
    return models[-1] if models and isinstance(models[-1], dict) else {}


def _plain_value(node: ast.expr):
    """The value of a literal or of ``dict(...)``; None for anything else."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        return {word.arg: _plain_value(word.value) for word in node.keywords}
    try:
        return ast.literal_eval(node)
    except (TypeError, ValueError):
        return None


def _misfit(
    cfg: Config, checkpoint: str | Path, problems: list[str]
) -> ValueError:
    student = _student_model(read_checkpoint(checkpoint)).get('backbone')
    given = describe_backbone(student) if student else 'of an unknown kind'
    return ValueError(
        f'{checkpoint} does not fit model.backbone of {cfg.filename}. '
        f'Weights {"; ".join(problems)}. '
        f"The student's backbone is {given}, the config's is "
        f'{describe_backbone(cfg.model.backbone)}. Take a config with the '
        "student's backbone, or a student with the config's; weights that "
        'only one of the two is meant to have are declared in '
        'backbone_weights of the config'
    )


def describe_backbone(backbone: dict) -> str:
    """Name a backbone by its type and the settings that are words or numbers.

    Examples:
        >>> from mmcakd.utils import describe_backbone
        >>> describe_backbone(dict(type='ResNet', depth=50, norm_eval=True))
        'ResNet(depth=50)'
    """
    settings = ', '.join(
        f'{key}={value}'
        for key, value in sorted(backbone.items())
        if key != 'type' and type(value) in (int, str)
    )
    return f'{str(backbone["type"]).split(".")[-1]}({settings})'


def _some(names: Sequence[str]) -> str:
    """Count weights, and name the first of them."""
    dots = ', ...' if len(names) > 3 else ''
    return f'{len(names)} ({", ".join(names[:3])}{dots})'


# -------------------------------------------------------------------- training


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


def train_run(cfg: Config, backbone: LoadedBackbone | None) -> dict:
    """Train and evaluate by MMEngine's Runner.

    Args:
        cfg (Config): See :func:`run_config`.
        backbone (LoadedBackbone, optional): What the backbone has to hold
            when training starts.

    Returns:
        dict: The metrics of the final weights.
    """
    build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
    runner = build(cfg)
    hook = DownstreamHook(backbone)
    runner.register_hook(hook)
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


# --------------------------------------------------------------- finished runs


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
    found = json.loads(marker.read_text())
    before, now = found['fingerprint'], fingerprint(cfg, run)
    if before != now:
        what = (
            config_changes(before['config'], now['config'])
            or 'its backbone started from other weights'
        )
        raise ValueError(
            f'{run.work_dir} was trained otherwise: {what}\nRemove it to '
            'train it again, or choose another --work-dir'
        )
    return found['metrics']


def mark_run(
    cfg: Config, run: DownstreamRun, metrics: dict | None = None
) -> None:
    """Write down that a run began or, with metrics, that it is finished."""
    run.work_dir.mkdir(parents=True, exist_ok=True)
    content = dict(fingerprint=fingerprint(cfg, run), metrics=metrics)
    write_text(run.work_dir / MARKER, json.dumps(content))


# ---------------------------------------------------------------------- report


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
    } or {key: (key, 1) for key in found}
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
    write_text(work_dir / 'results.json', json.dumps(content, indent=2) + '\n')

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
