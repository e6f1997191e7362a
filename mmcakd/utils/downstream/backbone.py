"""A student's weights in the backbone of a detector or segmentor."""

from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmcakd.models.teachers import read_checkpoint
from mmcakd.models.teachers.checkpoint import DERIVED_BUFFERS

from ..config_text import read_config_text

_OTHER_PACKAGES = dict(
    TimmClassifier='timm',
    TorchvisionClassifier='torchvision',
    HuggingFaceClassifier='Hugging Face',
)


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
    text = saved['meta'].get('cfg')
    try:
        cfg = read_config_text(text, 'a checkpoint') if text else {}
    except ValueError:
        return {}
    model = cfg.get('model')
    return model if isinstance(model, dict) else {}


def _misfit(
    cfg: Config, checkpoint: str | Path, problems: list[str]
) -> ValueError:
    student = _student_model(read_checkpoint(checkpoint)).get('backbone')
    known = isinstance(student, dict) and 'type' in student
    given = describe_backbone(student) if known else 'of an unknown kind'
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
