"""What a loss or connector of a distiller reads: references, parsed once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmcakd.arguments import ArgumentError, check_value, raise_unknown

from ..labels import LABELS

#: The name of the student among the models that records are of.
STUDENT = 'student'

#: The key that tells the kind of a reference -> all its keys. A record that
#: goes through a connector is a record; the grammar is MMRazor's, with the
#: name of a teacher added.
REFERENCES = dict(
    label=dict(label=Literal[LABELS]),
    recorder=dict(
        recorder=str,
        from_student=bool,
        teacher=str,
        record_idx=int,
        data_idx=int | str | None,
        connector=str | None,
        connector_idx=int | str | None,
    ),
    connector=dict(connector=str, connector_idx=int | str | None),
)


@dataclass(frozen=True)
class Reference:
    """A record, what a connector makes of one, a connector, or labels.

    Attributes:
        recorder (str, optional): A recorder; None for connectors and labels.
        model (str, optional): Whose record: ``'student'``, or the name of a
            teacher.
        record_idx (int): Which, of a source that runs several times.
        data_idx (int | str, optional): Which stage or head.
        connector (str, optional): A connector. With a recorder, in MMRazor's
            form, one without inputs of its own, through which the record
            goes.
        connector_idx (int | str, optional): Which of a connector's outputs.
        label (str, optional): A kind of labels.
    """

    recorder: str | None = None
    model: str | None = None
    record_idx: int = 0
    data_idx: int | str | None = None
    connector: str | None = None
    connector_idx: int | str | None = None
    label: str | None = None

    @property
    def of_student(self) -> bool:
        """Whether it is a record of the student."""
        return self.model == STUDENT

    @property
    def record(self) -> 'Reference':
        """The record alone, before the connector."""
        return replace(self, connector=None, connector_idx=None)

    def __str__(self) -> str:
        if self.label is not None:
            return f'{self.label} labels'
        if self.recorder is None:
            return _at(self.connector, self.connector_idx)
        name = _at(f"{self.model}'s {self.recorder}", self.data_idx)
        if self.connector is None:
            return name
        return _at(f'{self.connector} of {name}', self.connector_idx)


def _at(name: str, index: int | str | None) -> str:
    return name if index is None else f'{name}[{index}]'


def parse_reference(
    owner: str, given: Any, teachers: Sequence[str]
) -> Reference:
    """Parse a reference as configs have it, without looking for its parts.

    Args:
        owner (str): Where it stands, for the message.
        given (dict): See
            :class:`mmcakd.models.distillers.CrossArchDistiller`.
        teachers (Sequence[str]): Names of the teachers.

    Returns:
        Reference: It.

    Raises:
        ValueError: It is no reference, has a key that its kind has not, a
            value of another type, or leaves open whose record it is.

    Examples:
        >>> from mmcakd.models.distillers.references import parse_reference
        >>> stage = dict(recorder='stages', teacher='dino', data_idx=3)
        >>> print(parse_reference('student', stage, ['dino', 'clip']))
        dino's stages[3]
        >>> parse_reference('student', dict(label='hard', dataidx=1), [])
        Traceback (most recent call last):
        ...
        mmcakd.arguments.ArgumentError: student: a reference with \
'label' has no key 'dataidx'; it has label
    """
    keys = given if isinstance(given, dict) else ()
    kind = next((kind for kind in REFERENCES if kind in keys), None)
    if kind is None:
        raise ValueError(
            f'{owner} should be a dict with recorder, connector or label, but '
            f'got {given!r}'
        )
    for key, value in given.items():
        if key not in REFERENCES[kind]:
            known = list(REFERENCES[kind])
            what = f'a reference with {kind!r} has no key'
            raise_unknown(f'{owner}: {what}', key, known)
        check_value(owner, key, value, REFERENCES[kind][key])
    rest = {
        key: value
        for key, value in given.items()
        if key not in ('from_student', 'teacher')
    }
    if kind == 'recorder':
        rest['model'] = _find_model(owner, given, teachers)
    return Reference(**rest)


def _find_model(owner: str, given: dict, teachers: Sequence[str]) -> str:
    """Find whose record a reference names."""
    name, from_student = given.get('teacher'), given.get('from_student')
    if name is None and from_student is None:
        raise ValueError(
            f'{owner} names a recorder; say whose by from_student=True or '
            'False, or teacher=NAME'
        )
    if from_student:
        if name is not None:
            raise ValueError(
                f'{owner} is said to be of the student and of the teacher '
                f'{name!r}; remove one of the two'
            )
        return STUDENT
    if not teachers:
        raise ValueError(
            f"{owner} names a teacher's record, but there is no teacher"
        )
    if name is None:
        return only_teacher(owner, teachers)
    if name not in teachers:
        raise_unknown(f'{owner}: there is no teacher', name, list(teachers))
    return name


def only_teacher(owner: str, teachers: Sequence[str]) -> str:
    """Name the teacher, where there is no choice.

    Raises:
        ValueError: There are several.
    """
    if len(teachers) > 1:
        raise ArgumentError(
            f'{owner} leaves open which teacher is meant; say by teacher=NAME '
            f'which of {", ".join(teachers)}'
        )
    return teachers[0]


def place_of(model: str, recorder: str) -> str:
    """Say where in a config a recorder stands."""
    if model in (STUDENT, 'teacher'):
        return f'{model}_recorders.{recorder}'
    return f'teacher_recorders.{model}.{recorder}'


def parse_mapping(
    what: str, given: Any, teachers: Sequence[str]
) -> dict[str, Reference]:
    """Parse what a loss or connector reads, argument by argument.

    Args:
        what (str): The loss or connector, for the message.
        given (dict): References by argument.
        teachers (Sequence[str]): Names of the teachers.

    Raises:
        ValueError: See :func:`parse_reference`.
    """
    check_value(what, 'what it reads', given, dict)
    return {
        argument: parse_reference(f'{argument!r} of {what}', ref, teachers)
        for argument, ref in given.items()
    }


def parse_shape_like(
    what: str, given: Any, teachers: Sequence[str]
) -> Reference | dict[str, Reference]:
    """Parse what a connector takes shapes from: one record, or several."""
    owner = f"'shape_like' of {what}"
    is_one = not isinstance(given, dict) or (
        'recorder' in given or isinstance(given.get('connector'), str)
    )
    if is_one:
        return parse_reference(owner, given, teachers)
    return {
        name: parse_reference(owner, ref, teachers)
        for name, ref in given.items()
    }


def as_references(
    like: Reference | Mapping[str, Reference] | None,
) -> list[Reference]:
    """List one reference, or several by name in the order of names."""
    if like is None:
        return []
    if isinstance(like, Reference):
        return [like]
    return [like[name] for name in sorted(like)]
