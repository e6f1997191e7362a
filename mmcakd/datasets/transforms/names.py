"""Named inputs in the results of a pipeline."""

from typing import Any

from mmcakd.arguments import ArgumentError


def check_name(owner: str, name: str) -> None:
    """Refuse the name of the image for another input."""
    if name in ('', 'image', 'img', 'inputs'):
        raise ArgumentError(
            f'{owner}: {name!r} is no name for an input beside the image; '
            "take one such as 'depth' or 'view1'"
        )


def add_input(results: dict, name: str, value: Any) -> None:
    """Keep an input beside the image, under its name.

    Raises:
        ValueError: The sample has something else of this name.
    """
    if name in results:
        raise ValueError(
            f'the sample has a {name!r} already (it has '
            f'{", ".join(sorted(results))}): give the input another name'
        )
    results[name] = value


def get_input(results: dict, name: str, owner: str) -> Any:
    """Get an input by its name.

    Raises:
        ValueError: The sample has none.
    """
    if name not in results:
        raise ValueError(
            f'{owner}: the sample has no {name!r}; put LoadPairedImage or '
            f'AnotherView with name={name!r} before it in the pipeline'
        )
    return results[name]
