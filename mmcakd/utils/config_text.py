"""Configs that were written down as text: read without running it.

MMEngine writes the config of a run into its checkpoints and its work
directory, as Python. It reads such a text by running it. A checkpoint may
come from anywhere: here, its text is parsed, and nothing but values is taken
from it.
"""

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry

from .files import bounded_recursion

#: As MMEngine writes what has no literal.
_NUMBERS = dict(inf=float('inf'), nan=float('nan'))


class Unreadable:
    """Stands for a value in a text that is not spelled out.

    Args:
        text (str): As it is written.
    """

    def __init__(self, text: str) -> None:
        self.text = text if len(text) < 60 else f'{text[:57]}...'

    def __repr__(self) -> str:
        return f'Unreadable({self.text!r})'


def read_config_text(text: str, source: str | Path) -> Config:
    """Read a config from the text that MMEngine makes of it.

    Values are literals, ``dict(...)``, ``inf``, ``nan`` and ``float('inf')``.
    What is written in another way, as a call or a name, is not evaluated:
    :class:`Unreadable` stands for it, and :func:`check_readable` says so if
    it is needed.

    Args:
        text (str): See :attr:`mmengine.config.Config.pretty_text`.
        source (str | Path): Its file, for the message.

    Returns:
        Config: The config.

    Raises:
        ValueError: The text is no list of settings.

    Examples:
        >>> from mmcakd.utils.config_text import read_config_text
        >>> text = "clip = dict(max_norm=inf)\\nlr = max(0.1, 0.2)"
        >>> cfg = read_config_text(text, 'epoch_1.pth')
        >>> cfg.clip.max_norm, cfg.lr
        (inf, Unreadable('max(0.1, 0.2)'))
    """
    try:
        with bounded_recursion():
            return Config(_read_settings(text, source))
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise refusal(source, 'it cannot be parsed') from error
    except KeyError as error:
        # A name that MMEngine keeps for itself.
        raise refusal(source, str(error.args[0])) from error


def _read_settings(text: str, source: str | Path) -> dict:
    settings = {}
    for line in ast.parse(text).body:
        match line:
            case ast.Expr(value=ast.Constant()):
                continue  # a docstring
            case ast.Assign(targets=names) if all(
                isinstance(name, ast.Name) for name in names
            ):
                value = _read(line.value)
                settings |= {name.id: value for name in names}
            case _:
                raise refusal(
                    source,
                    f'line {line.lineno} of it, {_shown(line)!r}, is code, '
                    'which is not run',
                )
    return settings


def read_dumped_config(path: str | Path) -> Config:
    """Read the config that MMEngine left in a work directory.

    See :func:`read_config_text`. One with ``inf``, as older versions wrote
    it, does not run as Python.
    """
    text = Path(path).read_text(encoding='utf-8', errors='replace')
    return read_config_text(text, path)


def check_readable(cfg: dict | Config, source: str | Path) -> None:
    """Insist that all of a config could be read.

    Args:
        cfg (dict | Config): What is needed of :func:`read_config_text`.
        source (str | Path): Its file, for the message.

    Raises:
        ValueError: A setting could not. The message names it.
    """
    for place, value in _settings(cfg):
        if isinstance(value, Unreadable):
            raise refusal(
                source,
                f'its {place} is {value.text!r}, which would have to be run',
            )


def check_registered(cfg: dict | Config, source: str | Path) -> None:
    """Insist that a config names nothing but registered parts.

    MMEngine builds whatever a ``type`` leads to, ``os.system`` too.

    Args:
        cfg (dict | Config): What is needed of :func:`read_config_text`.
        source (str | Path): Its file, for the message.

    Raises:
        ValueError: A type is not registered. The message names it.
    """
    for place, value in _settings(cfg):
        if (
            place.rpartition('.')[2] == 'type'
            and isinstance(value, str)
            and '.' in value
            and not _is_registered(value)
        ):
            raise refusal(
                source, f'its {place} is {value!r}, which is not registered'
            )


def refusal(source: str | Path, problem: str) -> ValueError:
    """Say why the config in a checkpoint cannot be used."""
    return ValueError(
        f'the config that is recorded in {source} cannot be used: {problem}. '
        'Give the config of the run'
    )


def _shown(node: ast.AST) -> str:
    return Unreadable(ast.unparse(node)).text


def _read(node: ast.expr) -> Any:
    """Value of a literal, or of a few calls; else it is unreadable."""
    try:
        return _value(node)
    except (TypeError, ValueError):
        return Unreadable(ast.unparse(node))


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str(text)) if '{{' in text:
            # MMEngine would replace it by a variable of the environment.
            raise ValueError(text)
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return [_read(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_read(item) for item in items)
        case ast.Set(elts=items):
            return {_value(item) for item in items}
        case ast.Dict(keys=keys, values=values):
            return {
                _key(key): _read(value)
                for key, value in zip(keys, values, strict=True)
            }
        case ast.Name(id=name) if name in _NUMBERS:
            return _NUMBERS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return +_number(operand)
        case ast.BinOp():
            return ast.literal_eval(node)  # a complex number
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=words):
            return {_word(word): _read(word.value) for word in words}
        case ast.Call(
            func=ast.Name(id='dict'), args=[ast.Dict() as given], keywords=[]
        ):
            return _value(given)
        case ast.Call(
            func=ast.Name(id='float'),
            args=[ast.Constant(value=str(text))],
            keywords=[],
        ):
            return float(text)
        case ast.Call(func=ast.Name(id='set'), args=[], keywords=[]):
            return set()
    raise ValueError('not a literal')


def _number(node: ast.expr) -> int | float | complex:
    value = _value(node)
    if type(value) not in (int, float, complex):
        raise ValueError('not a number')
    return value


def _key(node: ast.expr | None) -> Any:
    if node is None:
        raise ValueError('a dictionary that is unpacked')
    key = _value(node)
    # MMEngine writes a key between quotes as it is.
    if isinstance(key, str) and repr(key) != f"'{key}'":
        raise ValueError('not a name')
    return key


def _word(word: ast.keyword) -> str:
    if word.arg is None:
        raise ValueError('a dictionary that is unpacked')
    return word.arg


def _settings(value: Any, place: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, Config):
        yield from _settings(value.to_dict())
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _settings(item, f'{place}.{key}' if place else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _settings(item, f'{place}[{index}]')
    else:
        yield place, value


def _registries() -> Iterator[Registry]:
    roots = [
        registry
        for registry in vars(mmengine.registry).values()
        if isinstance(registry, Registry)
    ]
    while roots:
        registry = roots.pop()
        roots.extend(registry.children.values())
        yield registry


def _is_registered(name: str) -> bool:
    """Whether a name with dots is one in a scope, or a path to a part."""
    scope, _, short = name.partition('.')
    part = _find_imported(name)
    for registry in _registries():
        if registry.scope == scope:
            registry.import_from_location()
            if short in registry.module_dict:
                return True
        if part is not None and part in registry.module_dict.values():
            return True
    return False


def _find_imported(path: str) -> Callable | None:
    """Find a class or function in what is imported already."""
    module, _, name = path.rpartition('.')
    found = getattr(sys.modules.get(module), name, None)
    is_part = inspect.isclass(found) or inspect.isfunction(found)
    return found if is_part else None
