"""What the losses share."""

from typing import Any

import torch


def check_same_shape(
    student: torch.Tensor, teacher: torch.Tensor, what: str, cure: str
) -> None:
    """Check that two tensors can be compared.

    Raises:
        ValueError: Their shapes differ. The message ends with ``cure``.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f'{what} differ in shape: student {tuple(student.shape)}, teacher '
            f'{tuple(teacher.shape)}; {cure}'
        )


def target_classes(label: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Read the class of each image, of mixed labels the largest.

    Args:
        label (Tensor): Class indices ``(N,)``, or scores ``(N, C)``.
        logits (Tensor): ``(N, C)``.

    Returns:
        Tensor: Class indices ``(N,)``.

    Raises:
        ValueError: The labels do not fit the logits.
    """
    if label.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(
            f'labels {tuple(label.shape)} do not fit logits '
            f'{tuple(logits.shape)}; they should be class indices (N,) or '
            'scores (N, C): check `num_classes` of data_preprocessor'
        )
    if label.ndim == 2:
        return label.argmax(1)
    classes = logits.shape[1]
    if not ((label >= 0) & (label < classes)).all():
        raise ValueError(
            f'the labels run from {int(label.min())} to {int(label.max())}, '
            f'but there are logits of {classes} classes; check `num_classes` '
            'of the heads and the annotations'
        )
    return label


def check_logits(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Check that logits ``(N, C)`` are of the same images and classes.

    Raises:
        ValueError: They are of another shape, or their shapes differ.
    """
    for logits in (student, teacher):
        if logits.ndim != 2:
            raise ValueError(
                f'logits should be (N, C), but got {tuple(logits.shape)}'
            )
    check_same_shape(
        student,
        teacher,
        'logits',
        'teacher and student must be trained for the same classes in the same '
        'order (set `num_classes` of their heads)',
    )


def check_same_classes(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Check that logits ``(N, C)`` can be compared by a softmax.

    Raises:
        ValueError: See :func:`check_logits`; or there is a single class.
    """
    check_logits(student, teacher)
    check_several_classes(student)


def check_several_classes(*logits: Any) -> None:
    """Check that there is more than one class in logits ``(N, C)``.

    Raises:
        ValueError: There is a single one.
    """
    if any(getattr(each, 'shape', ())[1:] == (1,) for each in logits):
        raise ValueError(
            'the softmax of a single logit is 1 whatever the logit, as there '
            'are no other classes, and the loss 0 for ever: compare the '
            'logits of sigmoids by mmcakd.BinaryTargetLoss, or set '
            'num_classes=2 in both heads'
        )
