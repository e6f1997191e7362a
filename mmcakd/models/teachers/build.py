"""Building a model from whatever names it."""

from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS, DefaultScope
from torch import nn

from mmcakd.registry import MODELS

from ..headless import BACKBONES, WRAPPER, wrap_backbone
from .normalisation import (
    NORMALISING,
    RAW,
    Normalisation,
    read_pipeline,
)


def build_model(
    source: Any, role: str, data_preprocessor: dict | None = None
) -> BaseModel:
    """Build a student or a teacher.

    Args:
        source (nn.Module | dict | str): A built model or bare backbone; a
            config dict of either; a dict with ``cfg_path``, as MMRazor has
            it; a config file of an installed package such as
            ``'mmpretrain::resnet/resnet50_8xb32_in1k.py'`` or on disk; or a
            name from MMPretrain's model zoo such as
            ``'resnet50_8xb32_in1k'``.
        role (str): ``'student'`` or ``'teacher'``, for the messages.
        data_preprocessor (dict, optional): Used if the source has none.

    Returns:
        BaseModel: With randomly initialised weights, unless it came built.

    Raises:
        ValueError: No source was given, the name is unknown, or something
            else is said beside ``cfg_path``.
        TypeError: The source is of another kind, or is no ``BaseModel``.

    Examples:
        >>> from mmcakd.models.teachers import build_model
        >>> model = build_model(
        ...     'mmpretrain::resnet/resnet18_8xb32_in1k.py', 'teacher')
        >>> type(model.backbone).__name__
        'ResNet'
    """
    if isinstance(source, BaseModel):
        return source
    cfg = {**read_source(source, role)}
    if data_preprocessor is not None:
        cfg.setdefault('data_preprocessor', data_preprocessor)
    if isinstance(cfg.get('data_preprocessor'), dict):
        # MMPretrain's classifiers write their train_cfg into it.
        cfg['data_preprocessor'] = {**cfg['data_preprocessor']}
    if cfg.get('_scope_') == 'mmcakd' and not _is_ours(cfg.get('type')):
        # MMEngine says so of what stands in a base by `mmcakd::`, where plain
        # names are those of the default scope as in any other config.
        del cfg['_scope_']
    scope = find_scope(cfg.get('type'))
    if scope:
        # `mmpretrain.ImageClassifier` has plain names inside.
        cfg.setdefault('_scope_', scope)
    elif DefaultScope.get_current_instance() is None:
        # In a script without a Runner.
        cfg.setdefault('_scope_', 'mmpretrain')
    model = MODELS.build(cfg)
    if not isinstance(model, BaseModel):
        raise TypeError(
            f'{role} should be a BaseModel such as mmpretrain.ImageClassifier '
            f'(it needs data_preprocessor, loss and predict), but '
            f'{cfg.get("type")} is a {type(model).__name__}'
        )
    network = getattr(model, 'model', None)
    if isinstance(network, nn.Module) and not isinstance(network, BaseModule):
        # A network of another package has initialised itself, perhaps with
        # pre-trained weights. MMEngine would call its `init_weights` again.
        network.is_init = True
    return model


def _is_ours(kind: type | str | None) -> bool:
    return kind in MODELS.module_dict or find_scope(kind) == 'mmcakd'


def find_scope(kind: type | str | None) -> str | None:
    """Find the package of a type in whose scope plain names inside are.

    Args:
        kind (type | str): A class, or its name with the scope, or the module,
            in front.

    Returns:
        str, optional: The scope of one of OpenMMLab's packages, or of
        another that has registries of its own.

    Examples:
        >>> from mmpretrain.models import ImageClassifier
        >>> from mmcakd.models.teachers.build import find_scope
        >>> find_scope(ImageClassifier), find_scope('mmdet.RetinaNet')
        ('mmpretrain', 'mmdet')
    """
    if isinstance(kind, type):
        kind = f'{kind.__module__}.{kind.__name__}'
    scope, prefixed, _ = str(kind or '').partition('.')
    known = scope in MODULE2PACKAGE or scope in MMENGINE_MODELS.children
    return scope if prefixed and known else None


def read_source(source: Any, role: str) -> dict:
    """Read the config of a model from what names it.

    Args:
        source (dict | str): See :func:`build_model`.
        role (str): ``'student'`` or ``'teacher'``, for the messages.

    Returns:
        dict: Its config.

    Raises:
        ValueError: See :func:`build_model`.
        TypeError: See :func:`build_model`.
    """
    if not source:
        raise ValueError(
            f'no {role} is given; set it in the config, e.g. model=dict('
            f'{"architecture" if role == "student" else role}='
            "'mmpretrain::resnet/resnet50_8xb32_in1k.py')"
        )
    if isinstance(source, str):
        return read_model_cfg(source, role)
    if isinstance(source, BACKBONES):
        # A bare backbone that came built.
        return dict(type=WRAPPER, backbone=source)
    if not isinstance(source, dict):
        raise TypeError(
            f'{role} should be a config dict, a config path, a model name or '
            f'a BaseModel, but got {type(source).__name__}; networks of other '
            'packages are wrapped by mmpretrain.TimmClassifier, '
            'mmpretrain.HuggingFaceClassifier and '
            'mmcakd.TorchvisionClassifier'
        )
    if 'cfg_path' not in source:
        return wrap_backbone(source)
    # MMRazor's spelling.
    weights = 'teacher_ckpt' if role == 'teacher' else 'load_from'
    if source.get('pretrained'):
        raise ValueError(
            f'{role}: pretrained=True loads weights unchecked; set '
            'pretrained=False and name the file or URL in '
            f'`{weights}`'
        )
    others = sorted(set(source) - {'cfg_path', 'pretrained'})
    if others:
        raise ValueError(
            f'{role}: {", ".join(others)} beside cfg_path would change '
            'nothing: write them in a config file whose _base_ is '
            f'{source["cfg_path"]}, and name weights in `{weights}`'
        )
    return read_model_cfg(source['cfg_path'], role)


def read_model_cfg(name: str, role: str) -> dict:
    """Read the model of a config file with its data preprocessor."""
    if '::' in name:
        scope = name.partition('::')[0]
        cfg = get_config(name)
    elif name.endswith(('.py', '.json', '.yaml', '.yml')):
        cfg = Config.fromfile(name)
        scope = cfg.get('default_scope', 'mmpretrain')
    else:
        from mmpretrain.apis import ModelHub

        try:
            cfg, scope = ModelHub.get(name).config, 'mmpretrain'
        except ValueError as error:
            raise ValueError(f'{role}: {error}') from error
    model = dict(cfg.model)
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model.setdefault('_scope_', scope)
    if role == 'teacher':
        _normalise_as_its_pipeline(model, cfg)
    return model


def _normalise_as_its_pipeline(model: dict, cfg: Config) -> None:
    """Let a teacher do what the pipeline did that it was evaluated with."""
    preprocessor = dict(model.get('data_preprocessor') or {})
    kind = preprocessor.setdefault('type', 'mmpretrain.ClsDataPreprocessor')
    is_for_classifiers = _name_of(kind).endswith('ClsDataPreprocessor')
    if preprocessor.get('mean') is not None or not is_for_classifiers:
        return
    loaders = (
        cfg.get(f'{split}_dataloader') for split in ('test', 'val', 'train')
    )
    dataset = next(filter(None, loaders), {}).get('dataset', {})
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        steps = [
            TRANSFORMS.build(step)
            for step in dataset.get('pipeline', [])
            if _name_of(step['type']) in NORMALISING
        ]
    found = read_pipeline(steps)
    if found is not RAW:
        flips = preprocessor.get('to_rgb', False)
        found = found.then(Normalisation(RAW.mean, RAW.std, flips))
        model['data_preprocessor'] = preprocessor | dict(
            mean=found.mean.expand(3, 1, 1).flatten().tolist(),
            std=found.std.expand(3, 1, 1).flatten().tolist(),
            to_rgb=found.flips,
        )


def _name_of(kind: Any) -> str:
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]
