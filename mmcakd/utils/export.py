"""From a distillation run to an ordinary checkpoint and config."""

from collections import OrderedDict
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings

from mmcakd.models.headless import wrap_backbone
from mmcakd.models.teachers import (
    build_model,
    check_finite,
    find_scope,
    read_checkpoint,
    read_model_cfg,
)
from mmcakd.models.teachers.state_dicts import (
    has_average,
    pick_student,
    pick_weights,
)
from mmcakd.version import __version__

from .checkpoints import newest_checkpoint, pointed_checkpoint
from .config_text import (
    check_readable,
    check_registered,
    read_config_text,
    refusal,
)
from .configs import name_types
from .files import replacing

#: Packages whose classifiers are MMPretrain's with more to choose from.
_PLUG_INS = ('mmcakd', 'mmrazor')

_EVALUATION_KEYS = (
    'default_scope',
    'env_cfg',
    'default_hooks',
    'vis_backends',
    'visualizer',
    'log_processor',
    'log_level',
    'dataset_type',
    'val_dataloader',
    'val_evaluator',
    'val_cfg',
    'test_dataloader',
    'test_evaluator',
    'test_cfg',
    'tta_model',
    'tta_pipeline',
)


def find_checkpoint(work_dir: str | Path, which: str = 'last') -> Path:
    """Find a checkpoint that a run left.

    Args:
        work_dir (str | Path): The work directory. The checkpoints may be in
            the ``out_dir`` of the run's ``CheckpointHook``.
        which (str): 'last'; 'best' by the metric of ``save_best``; or, of
            several of these, the metric, such as 'accuracy/top1'. Defaults to
            'last'.

    Returns:
        Path: The checkpoint file.

    Raises:
        FileNotFoundError: There is none, or none for this metric.
        ValueError: 'best' is asked for, but by several metrics.
    """
    work_dir = Path(work_dir)
    last = pointed_checkpoint(work_dir)
    if which == 'last':
        last = last or newest_checkpoint(work_dir)
        if last is not None:
            return last
        cure = 'train with a CheckpointHook, or name the file itself'
        raise FileNotFoundError(f'{work_dir} holds no last checkpoint: {cure}')
    # Where no last one was saved, each of the best knows those before it.
    readable = [last] if last else sorted(work_dir.glob('best_*.pth'))
    found: dict[str, Path] = {}
    latest = -1
    for source in readable:
        checkpoint = read_checkpoint(source)
        age = checkpoint['meta'].get('iter', 0)
        if age > latest:
            latest = age
            found = _find_best(work_dir, checkpoint) or found
    if which == 'best' and len(found) > 1:
        raise ValueError(
            f'{work_dir} has the best by each of {", ".join(sorted(found))}; '
            f'name one, e.g. which={min(found)!r}'
        )
    if which == 'best' and not found:
        # One that no checkpoint knows of is the best if it is the only one.
        files = list(work_dir.glob('best_*.pth'))
        found = {'': files[0]} if len(files) == 1 else {}
    if which == 'best' and found:
        return next(iter(found.values()))
    for metric, path in found.items():
        if metric == which or path.name.startswith(_best_prefix(which)):
            return path
    cure = 'set default_hooks.checkpoint.save_best in the config'
    known = f', only by {", ".join(sorted(found))}' if all(found) else ''
    by = '' if which == 'best' else f' by {which!r}{known if found else ""}'
    raise FileNotFoundError(f'{work_dir} holds no best checkpoint{by}: {cure}')


def _best_prefix(metric: str) -> str:
    """How MMEngine begins the name of the best checkpoint by a metric."""
    return f'best_{metric.replace("/", "_")}_'


def _find_recorded(work_dir: Path, path: str) -> Path | None:
    """Find a file that a run recorded by its path then."""
    # By name first, so that a moved work directory is still understood.
    for candidate in (work_dir / Path(path).name, Path(path)):
        if candidate.is_file():
            return candidate
    return None


def _find_best(work_dir: Path, checkpoint: dict) -> dict[str, Path]:
    """Find the best checkpoints, by metric, that a run knew of.

    A run with one metric does not record its name, which is empty here.
    """
    hub = checkpoint.get('message_hub', {}).get('runtime_info', {})
    found = {
        key.removeprefix('best_ckpt').removeprefix('_'): _find_recorded(
            work_dir, str(path)
        )
        for key, path in hub.items()
        if key.startswith('best_ckpt') and path
    }
    return {metric: path for metric, path in found.items() if path}


def recorded_config(checkpoint: dict, source: str | Path) -> Config:
    """Read the config that a run wrote into its checkpoint.

    Args:
        checkpoint (dict): The checkpoint.
        source (str | Path): Its file, for the message.

    Returns:
        Config: The config of the run.

    Raises:
        ValueError: The checkpoint has none, or none that can be read without
            running it.
    """
    text = checkpoint['meta'].get('cfg')
    if not isinstance(text, str):
        raise ValueError(
            f'{source} does not say how its model was configured: give the '
            'config of the run'
        )
    cfg = read_config_text(text, source)
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(
            f'the config that is recorded in {source} has no model: give the '
            'config of the run'
        )
    return cfg


def recorded_student(checkpoint: dict, source: str | Path) -> Config:
    """Read how the student in a checkpoint is configured as a plain model.

    Args:
        checkpoint (dict): The checkpoint.
        source (str | Path): Its file, for the message.

    Returns:
        Config: See :func:`student_config`.

    Raises:
        ValueError: See :func:`recorded_config`; or something that is needed
            could not be read, or is no registered part.
    """
    cfg = recorded_config(checkpoint, source)
    model = cfg.model
    if 'architecture' in model:
        kept = ('architecture', 'data_preprocessor')
        model = {key: model[key] for key in kept if key in model}
    kept = (*_EVALUATION_KEYS, 'data_preprocessor', 'custom_imports')
    needed = {key: cfg[key] for key in kept if key in cfg}
    check_readable(dict(needed, model=model), source)
    try:
        plain = student_config(cfg)
    except (AttributeError, KeyError, TypeError) as error:
        raise refusal(source, f'{type(error).__name__}: {error}') from error
    if 'custom_imports' in plain:
        import_modules_from_strings(**plain.custom_imports)
    check_registered(plain, source)
    return plain


def student_state_dict(
    checkpoint: dict, ema: bool | None = None
) -> 'OrderedDict[str, torch.Tensor]':
    """Pick the student's weights out of a checkpoint.

    See :func:`mmcakd.models.teachers.state_dicts.pick_weights`.

    Args:
        checkpoint (dict): A checkpoint of a distillation, or of a plain model.
        ema (bool, optional): Whether to take the averaged weights; None takes
            them where there are any. Defaults to None.

    Returns:
        OrderedDict: The weights, named as in the student itself.
    """
    if ema and not has_average(checkpoint):
        raise ValueError(
            'the checkpoint has no averaged weights: train with an EMAHook, '
            'or export without asking for them'
        )
    weights = pick_student(pick_weights(checkpoint, ema))
    return OrderedDict(
        # A student trained with channels last is saved as any other.
        (key, value.contiguous())
        for key, value in weights.items()
        if isinstance(value, torch.Tensor)
    )


def _resolve_model(model: str | dict, scope: str | None) -> ConfigDict:
    """Read a model that is named, by itself or as ``cfg_path``."""
    if isinstance(model, dict) and 'cfg_path' not in model:
        # A bare backbone becomes what it was in the run.
        return ConfigDict(wrap_backbone(model, scope))
    name = model if isinstance(model, str) else model['cfg_path']
    return ConfigDict(read_model_cfg(name, 'student'))


def without_pretraining(cfg):
    """Drop from a config what fetches weights while a model is built."""
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(without_pretraining(item) for item in cfg)
    if not isinstance(cfg, dict):
        return cfg
    kept = {}
    for key, value in cfg.items():
        if key == 'pretrained':
            value = False if isinstance(value, bool) else None
        elif (
            key == 'init_cfg'
            and isinstance(value, dict)
            and value.get('type') == 'Pretrained'
        ):
            continue
        kept[key] = without_pretraining(value)
    return type(cfg)(kept)


def _find_scope(model: ConfigDict, cfg: Config) -> str:
    """Find the package in whose scope a student is built."""
    named = (
        model.get('_scope_'),
        find_scope(model.get('type')),
        cfg.get('default_scope'),
    )
    scopes = [scope for scope in named if scope and scope not in _PLUG_INS]
    return scopes[0] if scopes else 'mmpretrain'


def _is_for_named_inputs(preprocessor: dict | None) -> bool:
    """Whether a config is that of a NamedInputsPreprocessor."""
    kind = preprocessor.get('type') if preprocessor else None
    name = getattr(kind, '__name__', str(kind))
    return name.rpartition('.')[2] == 'NamedInputsPreprocessor'


def student_config(cfg: Config) -> Config:
    """Make the config that evaluates the student of a run as a plain model.

    Args:
        cfg (Config): Config of a distillation, or of a plain model, which
            passes.

    Returns:
        Config: A config for MMPretrain, or for MMDetection, MMSegmentation or
        another package whose student it is, with ``model``, its
        ``data_preprocessor`` and what testing needs. ``mmcakd`` is imported
        only where something in it is of mmcakd.
    """
    cfg = name_types(cfg)
    model = cfg.model.get('architecture', cfg.model)
    preprocessors = [cfg.get('data_preprocessor')]
    if model is not cfg.model:
        model = _resolve_model(model, cfg.get('default_scope'))
        preprocessors.insert(0, cfg.model.get('data_preprocessor'))
    model = without_pretraining(ConfigDict(model))
    scope = _find_scope(model, cfg)
    model.pop('_scope_', None)
    # As in the run: MMPretrain's is the student's own where it has one, and
    # another, given to the algorithm, replaces the student's.
    is_replaced = 'architecture' in cfg.model and scope != 'mmpretrain'
    place = len(preprocessors) if is_replaced else 0
    preprocessors.insert(place, model.pop('data_preprocessor', None))
    preprocessor = next(filter(None, preprocessors), None)
    for named in filter(_is_for_named_inputs, preprocessors):
        # It replaces the student's, which gets the image alone.
        preprocessor = named['image']

    plain = deepcopy({k: cfg[k] for k in _EVALUATION_KEYS if k in cfg})
    plain['default_scope'] = scope
    plain['model'] = model
    if preprocessor is not None:
        # The others build `model` alone.
        owner = plain if scope == 'mmpretrain' else model
        owner['data_preprocessor'] = preprocessor
    if 'default_hooks' in plain:
        plain['default_hooks'] = {
            name: hook
            for name, hook in plain['default_hooks'].items()
            if hook is None or not hook.get('type', '').startswith('mmcakd.')
        }
    plain = Config(plain)

    imports = deepcopy(cfg.get('custom_imports', dict(imports=[])))
    imports['imports'] = [m for m in imports['imports'] if m != 'mmcakd']
    # Those of MMRazor cannot be imported without, either.
    if any(f"'{package}." in plain.pretty_text for package in _PLUG_INS):
        imports['imports'].append('mmcakd')
    if imports['imports']:
        plain.custom_imports = imports
    return plain


def _verify(config: Path, checkpoint: Path) -> None:
    """Load the files as their package does, and insist on every key."""
    model = build_model(str(config), 'student')
    model.load_state_dict(read_checkpoint(checkpoint)['state_dict'])


def export_student(
    source: str | Path,
    out: str | Path | None = None,
    cfg: Config | None = None,
    ema: bool | None = None,
    which: str = 'last',
) -> Path:
    """Write the student of a run as a plain checkpoint of its package.

    A classifier becomes a checkpoint of MMPretrain, a detector one of
    MMDetection, a segmentor one of MMSegmentation. A config of the same name
    is written beside it. Both are loaded, with no missing and no unexpected
    key, before they take the place of files of these names.

    Args:
        source (str | Path): Checkpoint file, or work directory.
        out (str | Path, optional): File to write. Defaults to ``student.pth``
            in the work directory, or to the name of the checkpoint file with
            ``_student`` appended.
        cfg (Config, optional): Config of the run. Defaults to the one in the
            checkpoint.
        ema (bool, optional): See :func:`student_state_dict`.
        which (str): See :func:`find_checkpoint`. Defaults to 'last'.

    Returns:
        Path: The file written.

    Examples:
        >>> # What a run leaves behind:
        >>> import tempfile
        >>> import mmcakd
        >>> from mmpretrain.models import build_classifier
        >>> student = dict(
        ...     type='ImageClassifier',
        ...     backbone=dict(type='MobileNetV2', widen_factor=0.1),
        ...     neck=dict(type='GlobalAveragePooling'),
        ...     head=dict(type='LinearClsHead', in_channels=1280,
        ...               num_classes=5))
        >>> run = Config(dict(model=dict(
        ...     type='mmcakd.CrossArchDistill', architecture=student)))
        >>> weights = {f'architecture.{key}': value for key, value
        ...            in build_classifier(student).state_dict().items()}
        >>> work_dir = Path(tempfile.mkdtemp())
        >>> torch.save(dict(meta=dict(cfg=run.pretty_text),
        ...                 state_dict=weights), work_dir / 'epoch_1.pth')
        >>> # Its student, and how MMPretrain reads it:
        >>> from mmcakd.utils import export_student
        >>> exported = export_student(work_dir / 'epoch_1.pth')
        >>> exported.name
        'epoch_1_student.pth'
        >>> from mmpretrain import get_model
        >>> model = get_model(str(exported.with_suffix('.py')),
        ...                   pretrained=str(exported))
        Loads checkpoint by local backend from path: ...
        >>> type(model).__name__
        'ImageClassifier'
    """
    source = Path(source)
    if source.is_dir():
        out = out or source / 'student.pth'
        source = find_checkpoint(source, which)
    out = Path(out or source.with_name(f'{source.stem}_student.pth'))
    if out.suffix != '.pth':
        raise ValueError(f'the name of the export must end in .pth: {out}')

    checkpoint = read_checkpoint(source)
    meta = checkpoint['meta']
    if cfg is None:
        plain = recorded_student(checkpoint, source)
    else:
        plain = student_config(cfg)

    kept = ('dataset_meta', 'epoch', 'iter', 'seed', 'mmengine_version')
    meta = {key: meta[key] for key in kept if key in meta}
    meta.update(cfg=plain.pretty_text, mmcakd_version=__version__)
    weights = student_state_dict(checkpoint, ema)
    check_finite(weights, source)

    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(out.with_suffix('.py')) as config_file,
        replacing(out) as checkpoint_file,
    ):
        plain.dump(config_file)
        # A file of Python's tells of a full disk as others do.
        with open(checkpoint_file, 'wb') as file:
            torch.save(dict(meta=meta, state_dict=weights), file)
        try:
            _verify(config_file, checkpoint_file)
        except RuntimeError as error:
            raise RuntimeError(
                f'the student in {source} does not fit its config: {error}'
            ) from error
    return out
