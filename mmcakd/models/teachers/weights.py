"""Where a teacher's weights come from, and that they have arrived.

A teacher without its weights trains a student to the end, and for nothing.
So every way to name them ends in one strict check: what lies on the disk is
loaded when the teacher is built, what has to be fetched when training starts,
and a teacher that no weights were named for does not start it.
"""

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModel
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ..headless import BACKBONES
from .build import build_model, read_source
from .weight_sources import (
    WHOLE_FILE,
    CheckpointPart,
    HuggingFacePart,
    Part,
    TimmPart,
    ZooPart,
    may_be_missing,
    shorten,
)

#: What ``teacher_ckpt`` says for a teacher that is random on purpose.
RANDOM = 'random'


class TeacherWeights:
    """Where the weights of a teacher come from, and whether they are there.

    Args:
        model (BaseModel): The teacher, filled in place.
        origin (str): Says in the log and in messages where they come from.
        parts (Sequence[Part]): What they are made of. What is on the disk is
            loaded at once.
        ignore (str | Sequence[str]): Regular expressions of keys that need
            not be filled.
        is_complete (bool): Whether nothing else is needed, as for a teacher
            that came built. Defaults to False.

    Raises:
        FileNotFoundError: A file is not there.
        RuntimeError: A file does not fit.
    """

    def __init__(
        self,
        model: BaseModel,
        origin: str,
        parts: Sequence[Part] = (),
        ignore: str | Sequence[str] = (),
        is_complete: bool = False,
    ) -> None:
        self.model = model
        self.origin = origin
        self.ignore = ignore
        self.is_complete = is_complete
        self.parts = list(parts)
        self.pending: list[Part] = []
        for part in parts:
            part.check(model, ignore)
            if part.is_here(model):
                part.load(model, ignore)
            else:
                self.pending.append(part)
        # They may also be loaded by hand.
        self._is_arriving = False
        model.register_load_state_dict_post_hook(self._note_loading)

    def _note_loading(self, model: nn.Module, keys: _IncompatibleKeys) -> None:
        if not self._is_arriving and not keys.missing_keys:
            self.is_complete = True

    @property
    def is_random(self) -> bool:
        """Whether the teacher is random on purpose."""
        return self.origin == RANDOM

    def arrive(self) -> None:
        """Fetch what is not there yet, and insist that nothing is missing.

        Raises:
            ValueError: The teacher, or a part of it, has no weights, and none
                are named.
            RuntimeError: They could not be fetched, or do not fit.
        """
        if self.is_complete:
            return
        # Before anything is downloaded.
        self._refuse_gaps()
        self._is_arriving = True
        try:
            for part in self.pending:
                part.load(self.model, self.ignore)
        finally:
            self._is_arriving = False
        self.is_complete = True

    def _refuse_gaps(self) -> None:
        name = type(self.model).__name__
        on_purpose = (
            f'; teacher_ckpt={RANDOM!r} trains with a teacher that is random '
            'on purpose'
        )
        if not self.parts:
            raise ValueError(
                f'the teacher ({name}) has no weights, and nothing says where '
                f'they are: {WHOLE_FILE}{on_purpose}'
            )
        covered = [part.module for part in self.parts]
        gaps = [
            key
            for key in self.model.state_dict()
            if not any(_is_below(key, module) for module in covered)
            and not may_be_missing(key, self.ignore)
        ]
        if gaps:
            raise ValueError(
                f'the weights of the teacher ({name}) are those of '
                f'{" and ".join(covered)} alone: {len(gaps)} others '
                f'({shorten(gaps)}) have none: {WHOLE_FILE}, or, if no loss '
                'depends on the others, their pattern in teacher_ckpt_ignore'
                f'{on_purpose}'
            )


def build_teacher(
    source: Any,
    checkpoint: str | None = None,
    ignore: str | Sequence[str] = (),
) -> tuple[BaseModel, TeacherWeights]:
    """Build a teacher, with the weights that can be had without a network.

    Args:
        source (nn.Module | dict | str): See :func:`build_model`.
        checkpoint (str, optional): File or URL of all its weights, or
            ``'random'``. Defaults to what ``source`` names: a built model has
            its weights, a model of a zoo is fetched when training starts, a
            config may have ``init_cfg``, ``pretrained`` or
            ``checkpoint_path``.
        ignore (Sequence[str]): See :func:`load_weights`.

    Returns:
        tuple[BaseModel, TeacherWeights]: The teacher, and how its weights
        arrive.

    Examples:
        >>> from mmcakd.models.teachers import build_teacher
        >>> model, weights = build_teacher(
        ...     'mmpretrain::resnet/resnet18_8xb32_in1k.py')
        >>> weights.origin
        'the zoo: mmpretrain::resnet/resnet18_8xb32_in1k.py'
        >>> model, weights = build_teacher('resnet18_8xb32_in1k', 'random')
        >>> weights.arrive()
    """
    if isinstance(source, BACKBONES):
        source = build_model(source, 'teacher')
        parts = [CheckpointPart(checkpoint)] if _is_file(checkpoint) else []
        origin = str(parts[0]) if parts else 'a built model'
        return source, TeacherWeights(
            source, origin, parts, ignore, is_complete=not parts
        )
    if isinstance(source, dict) and source.get('cfg_path'):
        # MMRazor's spelling; `pretrained` asks for what a name alone does.
        name = zoo_name(source['cfg_path'])
        name = name if source.get('pretrained', True) else None
        source = {**source, 'pretrained': False}
    else:
        name = zoo_name(source)
    cfg, parts = split_weights(read_source(source, 'teacher'))
    if _is_file(checkpoint):
        # Fills everything, also what the config would load elsewhere.
        parts = [CheckpointPart(checkpoint)]
        origin = str(checkpoint)
    elif checkpoint == RANDOM:
        parts, origin = [], RANDOM
    elif name:
        # Of the whole; a config may start its backbone from others.
        parts = [ZooPart(name)]
        origin = str(parts[0])
    else:
        origin = ', '.join(map(str, parts)) or 'nowhere'
    model = build_model(cfg, 'teacher')
    if not any(part.is_whole and part.is_here(model) for part in parts):
        model.init_weights()
    weights = TeacherWeights(
        model, origin, parts, ignore, is_complete=checkpoint == RANDOM
    )
    return model, weights


def split_weights(cfg: dict) -> tuple[dict, list[Part]]:
    """Take out of a model's config what would load weights unchecked.

    Args:
        cfg (dict): Config of a model, perhaps with ``init_cfg`` of type
            ``Pretrained``, or with ``pretrained`` and ``checkpoint_path`` of
            models of timm and Hugging Face, also in its parts.

    Returns:
        tuple[dict, list[Part]]: A copy that loads nothing, and what it would
        have loaded.
    """
    parts: list[Part] = []

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(
                walk(item, _join(path, str(index)))
                for index, item in enumerate(value)
            )
        if not isinstance(value, dict):
            return value
        kept = {
            key: item if key == 'init_cfg' else walk(item, _join(path, key))
            for key, item in value.items()
        }
        # Loaded later: the parts of a network are filled before the whole.
        parts.extend(_parts_of(value, path))
        init_cfgs = _as_list(value.get('init_cfg'))
        if any(map(_loads, init_cfgs)):
            # What is left is as without `init_cfg`, or else is named.
            del kept['init_cfg']
            others = [item for item in init_cfgs if not _loads(item)]
            kept |= dict(init_cfg=others) if others else {}
        if isinstance(kept.get('pretrained'), bool):
            kept['pretrained'] = False
        elif isinstance(kept.get('pretrained'), str):
            kept['pretrained'] = None
        if isinstance(kept.get('checkpoint_path'), str):
            kept['checkpoint_path'] = ''
        return type(value)(kept)

    return walk(cfg, ''), parts


def _parts_of(cfg: dict, path: str) -> list[Part]:
    parts: list[Part] = []
    wrapper = cfg.get('type')
    wrapper = getattr(wrapper, '__name__', str(wrapper)).rpartition('.')[2]
    if wrapper in ('TimmClassifier', 'TIMMBackbone'):
        if cfg.get('pretrained'):
            parts.append(TimmPart(cfg, path))
        if cfg.get('checkpoint_path'):
            attribute = 'timm_model' if wrapper == 'TIMMBackbone' else ''
            place = _join(path, attribute)
            parts.append(CheckpointPart(cfg['checkpoint_path'], place))
    if wrapper == 'HuggingFaceClassifier' and cfg.get('pretrained'):
        parts.append(HuggingFacePart(cfg, path))
    for init_cfg in filter(_loads, _as_list(cfg.get('init_cfg'))):
        parts.append(
            CheckpointPart(
                init_cfg['checkpoint'], path, init_cfg.get('prefix')
            )
        )
    return parts


def zoo_name(source: Any) -> str | None:
    """Name what a model zoo may have the weights of."""
    if not isinstance(source, str):
        return None
    is_file = source.endswith(('.py', '.json', '.yaml', '.yml'))
    return source if '::' in source or not is_file else None


def _is_file(checkpoint: str | None) -> bool:
    return bool(checkpoint) and checkpoint != RANDOM


def _is_below(key: str, module: str) -> bool:
    return not module or key.startswith(f'{module}.')


def _as_list(value: Any) -> list:
    if isinstance(value, (list, tuple)):
        return list(value)
    return [] if value is None else [value]


def _loads(init_cfg: Any) -> bool:
    kind = init_cfg.get('type') if isinstance(init_cfg, dict) else None
    kind = getattr(kind, '__name__', str(kind)).rpartition('.')[2]
    return kind in ('Pretrained', 'PretrainedInit')


def _join(path: str, name: str) -> str:
    return f'{path}.{name}' if path and name else path or name
