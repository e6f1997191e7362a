"""The labels of a batch, of any kind."""

from typing import Any

import torch
from mmpretrain.models.heads import MultiLabelClsHead, MultiTaskHead
from torch import nn

#: What a reference can read of the data samples.
LABELS = ('hard', 'soft', 'auto', 'several', 'index')
#: Those that are of one class an image.
ONE_CLASS = ('hard', 'soft', 'auto')

FIELDS = dict(
    hard='gt_label', soft='gt_score', several='gt_score', index='sample_idx'
)
CURES = dict(
    hard='',
    soft='; set to_onehot=True and num_classes in data_preprocessor',
    several='; set to_onehot=True and num_classes in data_preprocessor',
    index="; keep 'sample_idx' in meta_keys of PackInputs",
)
#: What to take where an image has several labels.
CURE_SEVERAL = (
    'take a loss that reads each class by itself, such as '
    "mmcakd.BinaryTargetLoss; a loss of one's own may read "
    "dict(label='several')"
)
#: How far scores may be from a sum of 1, rounded to half precision.
TOLERANCE = 1e-2


def read_labels(data_samples: list | None, kind: str) -> torch.Tensor:
    """Read the labels of a batch.

    Args:
        data_samples (list[DataSample]): Samples with ``gt_label`` or, after
            MixUp, CutMix or ``to_onehot``, ``gt_score``; and, from a data
            set of MMEngine, ``sample_idx``.
        kind (str): ``'hard'`` for class indices ``(N,)``, ``'soft'`` for
            ``(N, C)`` with a sum of 1 for each image, ``'auto'`` for soft
            ones if there are, ``'several'`` for ``(N, C)`` of images with any
            number of labels, ``'index'`` for places in the data set ``(N,)``.

    Raises:
        RuntimeError: Some samples have no such labels.
        ValueError: They mean something else: several labels of one image,
            hard labels or places of mixed images, classes that do not exist.
    """
    samples = data_samples or []
    if kind == 'auto':
        soft = any('gt_score' in sample for sample in samples)
        kind = 'soft' if soft else 'hard'
    field = FIELDS[kind]
    missing = [s for s in samples if s.get(field) is None]
    if missing or not samples:
        which = 'the data samples have'
        if 0 < len(missing) < len(samples):
            which = f'{len(missing)} of {len(samples)} data samples have'
        tasks = _tasks(samples)
        cure = (
            f': they are of several tasks ({", ".join(tasks)}), for which a '
            'loss without labels is needed'
            if tasks
            else CURES[kind]
        )
        raise RuntimeError(
            f'a loss reads {kind} labels, but {which} no {field}{cure}'
        )
    if kind == 'hard':
        return _read_hard(samples)
    if kind == 'index':
        return _read_index(samples)
    scores = _read_scores(samples)
    if kind == 'soft':
        _check_sum_is_one(scores)
    return scores


def check_one_class(data_samples: list | None) -> None:
    """Check that no image is labelled with several classes, or with none.

    Samples without labels, or of other kinds, are no concern of this.

    Raises:
        ValueError: An image has not exactly one class.
    """
    samples = data_samples or []
    labels = [getattr(sample, 'gt_label', None) for sample in samples]
    _check_single([label for label in labels if label is not None])
    if any(hasattr(sample, 'gt_score') for sample in samples):
        _check_sum_is_one(_read_scores(samples))


def heads_of(
    model: nn.Module, indices: list[int | str | None]
) -> list[nn.Module]:
    """List the heads of a classifier that may be read.

    The whole network stands for the head of those that wrap one.

    Args:
        model (nn.Module): Of several tasks, or with a single head, or none.
        indices (list): Which records are read of it; one may pick a task, by
            its name or place.
    """
    head = getattr(model, 'head', None) or getattr(model, 'model', None)
    if not isinstance(head, MultiTaskHead):
        return [head] if isinstance(head, nn.Module) else []
    heads = dict(head.task_heads.items())
    heads |= dict(enumerate(head.task_heads.values()))
    return [heads[index] for index in indices if index in heads]


def is_multi_label(head: nn.Module) -> bool:
    """Whether a head is for images of several labels."""
    problem = getattr(getattr(head, 'config', None), 'problem_type', None)
    return (
        isinstance(head, MultiLabelClsHead)
        or problem == 'multi_label_classification'
    )


def _read_hard(samples: list) -> torch.Tensor:
    labels = [sample.gt_label for sample in samples]
    _check_single(labels)
    labels = torch.stack([torch.as_tensor(v).flatten()[0] for v in labels])
    if labels.is_floating_point():
        raise ValueError(
            f'hard labels should be class indices, but are {labels.dtype}'
        )
    known = {s.get('num_classes') for s in samples} - {None}
    classes = min(known, default=None)
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (classes is not None and highest >= classes):
        raise ValueError(
            f'the batch has labels from {lowest} to {highest}, but there are '
            f'{classes or "no negative"} classes; check the annotations and '
            '`num_classes`'
        )
    if any('gt_score' in sample for sample in samples):
        scores = _read_scores(samples)
        places = torch.arange(len(labels), device=labels.device)
        rest = scores.clone()
        rest[places, labels] = 0
        if rest.any():
            raise _mixed('hard labels', scores[rest.any(1)][0])
    return labels


def _read_index(samples: list) -> torch.Tensor:
    if any('gt_score' in sample for sample in samples):
        scores = _read_scores(samples)
        between = ((scores > 0) & (scores < 1)).any(1)
        if between.any():
            raise _mixed('places in the data set', scores[between][0])
    index = torch.as_tensor([sample.get('sample_idx') for sample in samples])
    if index.ndim != 1 or index.is_floating_point():
        raise ValueError(
            'sample_idx should be one index of each image, but the batch has '
            f'{index.dtype} {tuple(index.shape)}'
        )
    return index


def _read_scores(samples: list) -> torch.Tensor:
    """Stack scores ``(N, C)`` of the same classes."""
    missing = sum('gt_score' not in sample for sample in samples)
    if missing:
        raise ValueError(
            f'{missing} of {len(samples)} data samples have no gt_score, but '
            'the others have: give all images of a batch labels of one kind'
        )
    scores = [torch.as_tensor(sample.gt_score) for sample in samples]
    shapes = {tuple(score.shape) for score in scores}
    if len(shapes) > 1 or scores[0].ndim != 1:
        raise ValueError(
            'scores of a batch should be (C,) for each image, but are '
            f'{sorted(shapes)}; set `num_classes` of data_preprocessor'
        )
    scores = torch.stack(scores)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(
            'scores should be from 0 to 1, but the batch has '
            f'{scores.min():g} to {scores.max():g}'
        )
    return scores


def _check_single(labels: list) -> None:
    for index, label in enumerate(map(torch.as_tensor, labels)):
        if label.numel() != 1:
            raise ValueError(
                f'image {index} of the batch has the labels '
                f'{label.tolist()}, but a loss is for images of one class: '
                f'{CURE_SEVERAL}'
            )


def _check_sum_is_one(scores: torch.Tensor) -> None:
    total = scores.float().sum(1)
    # Written so that NaN is an error, too.
    right = (total - 1).abs() <= TOLERANCE
    if not right.all():
        index = int(right.int().argmin())
        raise ValueError(
            f'the label scores of image {index} of the batch sum to '
            f'{total[index]:g}, so that it is not labelled with one class, '
            f'but a loss is for images of one class: {CURE_SEVERAL}'
        )


def _mixed(what: str, score: torch.Tensor) -> ValueError:
    shares = {
        f'class {index}': round(float(score[index]), 3)
        for index in score.nonzero().flatten().tolist()
    }
    return ValueError(
        f'a loss reads {what}, but an image of the batch is of {shares}: '
        'images are mixed (MixUp, CutMix). Remove the augments, in '
        'SwitchRecipeHook and the like, too, or let the loss read '
        "dict(label='soft') or 'auto' if it can"
    )


def _tasks(samples: list[Any]) -> list[str]:
    """Tasks of MMPretrain's ``MultiTaskDataSample``."""
    return sorted({t for s in samples for t in getattr(s, 'tasks', ())})
