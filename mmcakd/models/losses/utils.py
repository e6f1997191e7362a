"""What the losses share."""

import torch


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Lift half precisions to float32; leave float32 and float64 alone."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


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


def check_same_classes(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Check that logits ``(N, C)`` are of the same images and classes.

    Raises:
        ValueError: Their shapes differ.
    """
    check_same_shape(
        student,
        teacher,
        'logits',
        'teacher and student must be trained for the same classes in the same '
        'order (set `num_classes` of their heads)',
    )
