"""Teachers as a config has them: one or several, live or stored."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from mmcakd.arguments import Size, check_on_construction, check_value
from mmcakd.registry import MODELS

from .stored import StoredTeacher
from .teacher import DEFAULT_INPUT, Precision, Teacher
from .weights import build_teacher

#: The name of the teacher that is given without one.
TEACHER = 'teacher'


@check_on_construction
@dataclass
class LiveTeacher:
    """A teacher that runs, as ``teachers=dict(NAME=dict(...))`` has it.

    Args:
        model (BaseModel | dict | str): See
            :func:`mmcakd.models.teachers.build_model`.
        ckpt (str, optional): See
            :func:`mmcakd.models.teachers.build_teacher`.
        ckpt_ignore (Sequence[str]): See
            :func:`mmcakd.models.teachers.load_weights`.
        mode (str): This and all below: see
            :class:`mmcakd.models.teachers.Teacher`.
        input_size (int | tuple[int, int], optional): See above.
        precision (str, optional): See above.
        channels_last (bool): See above.
        compile (bool): See above.
        inputs (str): See above.
    """

    model: Any
    ckpt: str | PathLike | None = None
    ckpt_ignore: str | Sequence[str] = ()
    mode: Literal['eval', 'train'] = 'eval'
    input_size: Size | None = None
    precision: Precision | None = None
    channels_last: bool = False
    compile: bool = False
    inputs: str = DEFAULT_INPUT

    def build(self) -> Teacher:
        """Build it, with the weights that can be had without a network."""
        model, weights = build_teacher(self.model, self.ckpt, self.ckpt_ignore)
        teacher = Teacher(
            model,
            self.mode,
            self.input_size,
            self.precision,
            self.channels_last,
            self.compile,
            self.inputs,
        )
        teacher.weights = weights
        return teacher


#: What a live teacher takes and a stored one does not.
OPTIONS = tuple(field.name for field in fields(LiveTeacher))

_DIRECT = ('teacher', 'teacher_ckpt', 'teacher_ckpt_ignore', 'teachers')
#: Arguments of the algorithm that became options of a teacher.
_MOVED = tuple(
    f'teacher_{name}'
    for name in ('mode', 'input_size', 'precision', 'channels_last', 'compile')
)
#: All keys of the config of a distillation that are of teachers.
SPELLINGS = _DIRECT + _MOVED


def read_teachers(
    teacher: Any = None,
    teacher_ckpt: str | PathLike | None = None,
    teacher_ckpt_ignore: str | Sequence[str] = (),
    teachers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, dict | StoredTeacher]:
    """Read the teachers of a distillation, whichever way they are written.

    Args:
        teacher (Any): The only one: a model, or ``dict(model=..., ckpt=...,
            precision=...)`` with options, or a stored one.
        teacher_ckpt (str, optional): Its weights.
        teacher_ckpt_ignore (Sequence[str]): Keys that may not fit.
        teachers (Mapping[str, Any], optional): All of them by name, each a
            ``dict(model=..., ...)`` or a stored one. An empty one is for a
            distillation without a teacher.
        options (Mapping[str, Any], optional): Of the only teacher, by the
            names of :class:`LiveTeacher`.

    Returns:
        dict[str, dict | StoredTeacher]: By name, arguments of
        :class:`LiveTeacher`, configs of stored teachers, or such.

    Raises:
        ValueError: Both spellings, or none; a name that is the student's;
            options beside a stored teacher.

    Examples:
        >>> from mmcakd.models.teachers import read_teachers
        >>> read_teachers('resnet50_8xb32_in1k', teacher_ckpt='r50.pth')
        {'teacher': {'model': 'resnet50_8xb32_in1k', 'ckpt': 'r50.pth'}}
        >>> read_teachers(teachers=dict())
        {}
    """
    given = dict(options or {})
    if teacher_ckpt is not None:
        given['ckpt'] = teacher_ckpt
    if teacher_ckpt_ignore:
        given['ckpt_ignore'] = teacher_ckpt_ignore
    if teachers is not None:
        if teacher is not None or given:
            raise ValueError(
                'the teachers are given by `teachers`, and one more by '
                '`teacher` and what begins with teacher_: write all of it '
                'into teachers=dict(NAME=dict(model=..., ckpt=...))'
            )
        check_value('the model', 'teachers', teachers, dict)
        return {
            name: _read_named(name, source)
            for name, source in teachers.items()
        }
    if not teacher:
        raise ValueError(
            'no teacher is given; set it in the config, e.g. model=dict('
            "teacher='mmpretrain::resnet/resnet50_8xb32_in1k.py'), or several "
            'by teachers=dict(NAME=dict(model=...)); teachers=dict() trains '
            'without one'
        )
    if is_stored(teacher):
        if given:
            raise ValueError(
                f'the teacher is read from a store, where {", ".join(given)} '
                'would say nothing: remove it'
            )
        return {TEACHER: _check_stored(TEACHER, teacher)}
    if _has_options(teacher):
        twice = sorted(given.keys() & teacher.keys())
        if twice:
            raise ValueError(
                f'{", ".join(twice)} of the teacher is given in its dict and '
                'beside it; remove one of the two'
            )
        return {TEACHER: {**teacher, **given}}
    return {TEACHER: {'model': teacher, **given}}


def teachers_of(model: Mapping[str, Any]) -> dict[str, dict | StoredTeacher]:
    """Read the teachers of the config of a distillation.

    Args:
        model (Mapping): ``model`` of a config.

    Returns:
        dict[str, dict | StoredTeacher]: See :func:`read_teachers`.
    """
    options = {
        key.removeprefix('teacher_'): model[key]
        for key in _MOVED
        if model.get(key) is not None
    }
    given = {key: model[key] for key in _DIRECT if key in model}
    return read_teachers(**given, options=options)


def weight_files(model: Mapping[str, Any]) -> dict[str, Path]:
    """Find the files on the disk that teachers' weights come from.

    Args:
        model (Mapping): ``model`` of a config, also of a plain one.

    Returns:
        dict[str, Path]: By the name of the teacher.
    """
    if 'architecture' not in model:
        return {}
    named = {
        name: Path(source['ckpt'])
        for name, source in teachers_of(model).items()
        if not is_stored(source) and source.get('ckpt') is not None
    }
    return {name: path for name, path in named.items() if path.is_file()}


def is_stored(source: Any) -> bool:
    """Whether a teacher, or the config of one, is read from a store."""
    if isinstance(source, StoredTeacher):
        return True
    kind = source.get('type') if isinstance(source, Mapping) else None
    if isinstance(kind, str) and kind:
        kind = MODELS.get(kind)
    return isinstance(kind, type) and issubclass(kind, StoredTeacher)


def _has_options(source: Any) -> bool:
    """Whether a dict is one with a model in it, rather than a model's."""
    return (
        isinstance(source, dict) and 'model' in source and 'type' not in source
    )


def _read_named(name: str, source: Any) -> dict | StoredTeacher:
    where = f'teachers.{name}'
    if name == 'student' or not isinstance(name, str) or not name:
        raise ValueError(
            f'a teacher cannot be called {name!r}; take another name'
        )
    if is_stored(source):
        return _check_stored(where, source)
    if not _has_options(source):
        raise ValueError(
            f'{where} should be a dict with the model in it, {where}=dict('
            f'model=..., ckpt=...), but got {source!r}'
        )
    return dict(source)


def _check_stored(where: str, source: Any) -> dict | StoredTeacher:
    if isinstance(source, StoredTeacher):
        return source
    options = sorted(set(source) & set(OPTIONS))
    if options:
        raise ValueError(
            f'{where} is read from a store ({source["type"]}), where '
            f'{", ".join(options)} would say nothing: remove it'
        )
    return source


def build_teachers(
    sources: Mapping[str, dict | StoredTeacher],
) -> dict[str, Teacher | StoredTeacher]:
    """Build teachers, in the order of their names.

    Args:
        sources (Mapping[str, dict | StoredTeacher]): What
            :func:`read_teachers` returns.

    Raises:
        ValueError: One cannot be built; the message names it.
    """
    built = {}
    # By name: MMEngine sorts the keys of a config that it dumps, and random
    # weights depend on the order.
    for name, source in sorted(sources.items()):
        with naming_teacher(name):
            if isinstance(source, StoredTeacher):
                built[name] = source
            elif is_stored(source):
                built[name] = MODELS.build(source)
            else:
                built[name] = LiveTeacher(**source).build()
    return built


def called(name: str) -> str:
    """Call a model in a message: the student, the teacher, or which one."""
    return name if name in ('student', TEACHER) else f'teacher {name!r}'


@contextmanager
def naming_teacher(name: str) -> Iterator[None]:
    """Say in an error which teacher it is about, where one has a name."""
    try:
        yield
    except (FileNotFoundError, RuntimeError, TypeError, ValueError) as error:
        if name == TEACHER:
            raise
        kinds = (FileNotFoundError, RuntimeError, TypeError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f'teachers.{name}: {error}') from error
