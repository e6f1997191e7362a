"""Types and ranges of constructor arguments, checked by their annotations.

A registered class says in its signature what it takes, ``tau: Positive`` or
``mode: Literal['ce', 'kl']``; :func:`check_on_construction`, which the
registries of mmcakd apply, compares every call with that. So a config that
does not fit is refused in one sentence while the model is built, and no class
has code for it. What depends on several arguments, or on the models, stays in
the classes.

pydantic's ``validate_call`` would convert (``'4'`` to 4, True to 1) and copy
dicts, which loses MMEngine's ``ConfigDict`` and its lazy values; typeguard
knows no ranges; neither gives one sentence that names the class.
"""

import inspect
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, wraps
from inspect import Parameter
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np


class ArgumentError(ValueError):
    """An argument of a wrong type, out of its range, or unknown."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number.

    Args:
        words (str): What a number in the range is, in the singular.
        ge (float, optional): It is greater or equal.
        gt (float, optional): It is greater.
        le (float, optional): It is less or equal.
        lt (float, optional): It is less.
    """

    words: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


#: Temperatures, scales.
Positive = Annotated[float, Range('a positive number', gt=0)]
#: Weights of losses.
NonNegative = Annotated[float, Range('a number of at least 0', ge=0)]
#: Probabilities, shares.
Fraction = Annotated[float, Range('a number from 0 to 1', ge=0, le=1)]
#: Momenta of running means and rates of dropout: 1 would stand still.
Rate = Annotated[float, Range('a number from 0 to below 1', ge=0, lt=1)]
#: Counts, widths, sides, and stages counted from 1.
PositiveInt = Annotated[int, Range('a positive whole number', ge=1)]
#: Places counted from 0.
NonNegativeInt = Annotated[int, Range('a whole number of at least 0', ge=0)]
#: Limits that may be none.
PositiveOrInf = Annotated[
    float, Range('a positive number or inf', gt=0, le=math.inf)
]
#: ``(H, W)`` of a feature map.
Grid = tuple[PositiveInt, PositiveInt]
#: A side, or ``(H, W)``, of images.
Size = PositiveInt | Grid


def _is_number(value: Any, kind: type) -> bool:
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


#: Annotation -> its words, and whether a value fits it.
SIMPLE = {
    NoneType: ('None', lambda value: value is None),
    bool: ('True or False', lambda value: isinstance(value, bool | np.bool_)),
    int: ('a whole number', lambda value: _is_number(value, Integral)),
    float: ('a number', lambda value: _is_number(value, Real)),
    str: ('a string', lambda value: isinstance(value, str)),
}
SEQUENCES = (Sequence, list, tuple)


class Misfit(NamedTuple):
    """A value that is not what is asked for, and where it is."""

    path: str
    value: Any
    kind: Any


def find_misfit(path: str, value: Any, kind: Any) -> Misfit | None:
    """Find what does not fit an annotation.

    Lists and tuples are alike, as in configs. A whole number is a float, a
    bool is no number, and numbers of numpy are numbers. NaN fits nothing,
    infinity only a range that ends with it. An annotation that is not
    understood fits all.

    Args:
        path (str): Where the value is, such as the name of an argument.
        value (Any): Anything.
        kind (Any): An annotation.

    Returns:
        Misfit, optional: The value, or the item of it that is to blame.

    Examples:
        >>> from mmcakd.arguments import Positive, Size, find_misfit
        >>> find_misfit('tau', 4, Positive)
        >>> find_misfit('tau', True, Positive).value
        True
        >>> find_misfit('input_size', [64, 96], Size)
        >>> find_misfit('input_size', [64, 96.5], Size).path
        'input_size[1]'
    """
    misfit = Misfit(path, value, kind)
    origin, args = get_origin(kind) or kind, get_args(kind)
    items: list[tuple[str, Any, Any]] = []
    if origin is Annotated:
        bounds = [note for note in args[1:] if isinstance(note, Range)]
        is_right = find_misfit(path, value, args[0]) is None or any(
            bound.le == math.inf == value for bound in bounds
        )
        fits = is_right and all(value in bound for bound in bounds)
    elif origin in (Union, UnionType):
        found = [find_misfit(path, value, member) for member in args]
        deeper = [other for other in found if other and other.path != path]
        misfit = deeper[0] if len(deeper) == 1 else misfit
        fits = None in found
    elif origin is Literal:
        fits = any(type(value) is type(a) and value == a for a in args)
    elif origin in SIMPLE:
        fits = SIMPLE[origin][1](value)
    elif origin in SEQUENCES:
        is_fixed = origin is tuple and args and args[-1] is not Ellipsis
        fits = isinstance(value, Sequence) and not isinstance(value, str)
        fits = fits and (not is_fixed or len(value) == len(args))
        if fits and args:
            kinds = args if is_fixed else args[:1] * len(value)
            items = [
                (f'{path}[{place}]', *item)
                for place, item in enumerate(zip(value, kinds, strict=True))
            ]
    else:
        # Any is a class, too.
        is_class = isinstance(origin, type) and origin is not Any
        fits = not is_class or isinstance(value, origin)
        if fits and origin is dict and args:
            items = [(f'{path}[{k!r}]', v, args[1]) for k, v in value.items()]
    if not fits:
        return misfit
    return next(filter(None, (find_misfit(*item) for item in items)), None)


def describe(kind: Any) -> str:
    """Say what an annotation asks for, as in 'a positive number or None'."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return next(n.words for n in args[1:] if isinstance(n, Range))
    if origin in (Union, UnionType, Literal):
        *words, last = map(repr if origin is Literal else describe, args)
        return f'{", ".join(words)} or {last}' if words else last
    if origin in SIMPLE:
        return SIMPLE[origin][0]
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f'({", ".join(map(describe, args))})'
    if origin in SEQUENCES:
        return 'a list' + (f' with each {describe(args[0])}' if args else '')
    name = getattr(origin, '__name__', str(origin))
    return f'{"an" if name[0] in "AEIO" else "a"} {name}'


def show(value: Any) -> str:
    """Show a value and its type in a line."""
    text = textwrap.shorten(repr(value), 80, placeholder='...')
    return f'{text} ({type(value).__name__})'


def raise_unknown(what: str, name: str, known: Sequence[str]) -> None:
    """Refuse a name, and tell which was meant or what there is.

    Args:
        what (str): Who has no such name, up to the name itself.
        name (str): The name.
        known (Sequence[str]): Those there are.

    Raises:
        ArgumentError: Always.
    """
    close = get_close_matches(str(name), known, n=1)
    hint = f'did you mean {close[0]!r}?' if close else ''
    hint = hint or f'it has {", ".join(known) or "none"}'
    raise ArgumentError(f'{what} {name!r}; {hint}')


def check_value(owner: str, path: str, value: Any, kind: Any) -> None:
    """Refuse a value that does not fit an annotation."""
    misfit = find_misfit(path, value, kind)
    if misfit is not None:
        raise ArgumentError(
            f'{owner}: {misfit.path} should be {describe(misfit.kind)}, but '
            f'got {show(misfit.value)}'
        )


def check_on_construction(cls: type) -> type:
    """Let a class check the arguments of every construction.

    A subclass that hands arguments on to this class has them checked, too.

    Examples:
        >>> from mmcakd.arguments import Positive, check_on_construction
        >>> @check_on_construction
        ... class Loss:
        ...     def __init__(self, tau: Positive = 1.) -> None:
        ...         self.tau = tau
        >>> Loss(tau='4')
        Traceback (most recent call last):
        ...
        mmcakd.arguments.ArgumentError: Loss: tau should be a positive \
number, but got '4' (str)
        >>> Loss(tua=4)
        Traceback (most recent call last):
        ...
        mmcakd.arguments.ArgumentError: Loss has no argument 'tua'; did you \
mean 'tau'?
    """
    init = cls.__init__
    if getattr(init, 'checks_arguments', False):
        return cls
    signature = inspect.signature(cls if init is object.__init__ else init)
    names = _named(signature.parameters)
    passes_on = _passes_on(signature.parameters)

    @cache
    def read_kinds() -> dict[str, Any]:
        # Not before the first call: a class may name itself.
        hints = get_type_hints(init, include_extras=True)
        return {name: hints.get(name, Any) for name in names}

    @wraps(init)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        unknown = [name for name in kwargs if name not in names]
        if unknown and not passes_on:
            raise_unknown(
                f'{owner} has no argument', unknown[0], _keywords(type(self))
            )
        call = args if init is object.__init__ else (self, *args)
        try:
            given = signature.bind(*call, **kwargs).arguments
        except TypeError as error:
            raise ArgumentError(f'{owner}: {error}') from None
        for name, value in given.items():
            default = signature.parameters[name].default
            if name in names and value is not default:
                check_value(owner, name, value, read_kinds()[name])
        init(self, *args, **kwargs)

    __init__.checks_arguments = True
    cls.__init__ = __init__
    return cls


Parameters = Mapping[str, Parameter]


def _passes_on(parameters: Parameters) -> bool:
    kinds = (parameter.kind for parameter in parameters.values())
    return Parameter.VAR_KEYWORD in kinds


def _named(parameters: Parameters) -> list[str]:
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in parameters.items()
        if parameter.kind not in several and name != 'self'
    ]


def _keywords(cls: type) -> list[str]:
    """Names of arguments of a class and of those it hands arguments on to."""
    names: dict[str, None] = {}
    for base in cls.__mro__[:-1]:
        if '__init__' in vars(base):
            parameters = inspect.signature(base.__init__).parameters
            names |= dict.fromkeys(_named(parameters))
            if not _passes_on(parameters):
                break
    return list(names)
