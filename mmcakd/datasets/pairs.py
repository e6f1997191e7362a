"""What can be known of paired inputs before anything is trained."""

from typing import Any

from mmcakd.models.teachers.normalisation import list_pipelines, list_steps

from .transforms import AnotherView, LoadPairedImage, SharedTransforms
from .transforms.pipelines import (
    is_geometric,
    joins_images,
    name_of,
    walk,
)


def check_pairs(dataset: Any, *pipelines: Any) -> None:
    """Check that what is loaded beside the images is there, and stays paired.

    Args:
        dataset (Dataset): Of OpenMMLab, perhaps in wrappers.
        *pipelines (Compose | Sequence): What hooks will put in the place of
            its pipeline.

    Raises:
        FileNotFoundError: A file is missing, see
            :meth:`LoadPairedImage.check_dataset`.
        ValueError: A transform moves what is in an image, or joins images,
            outside of :class:`SharedTransforms`.
    """
    for inner, steps in list_pipelines(dataset):
        for pipeline in (steps, *map(list_steps, pipelines)):
            _check_pipeline(inner, pipeline)


def _check_pipeline(dataset: Any, steps: list) -> None:
    loaders = [t for t in walk(steps) if isinstance(t, LoadPairedImage)]
    if not loaders:
        return
    apart = {
        id(inside)
        for step in walk(steps)
        if isinstance(step, (SharedTransforms, AnotherView))
        or _maps_inputs(step)
        for inside in walk([step])
    }
    for transform in walk(steps):
        moves = is_geometric(transform) or joins_images(transform)
        if moves and id(transform) not in apart:
            names = ' and '.join(loader.name for loader in loaders)
            raise ValueError(
                f'{name_of(transform)} of the pipeline moves what is in the '
                f'image alone, to which {names} would no longer belong: put '
                'it into mmcakd.SharedTransforms, or leave it out if that '
                'refuses it'
            )
    for loader in loaders:
        loader.check_dataset(dataset)


def _maps_inputs(transform: Any) -> bool:
    """Whether MMCV's KeyMapper or its kin transform another input, too."""
    mapping = getattr(transform, 'mapping', None) or {}
    return mapping.get('img', 'img') != 'img'
