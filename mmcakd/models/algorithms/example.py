"""A made-up batch, on which models and losses are tried before training."""

import math
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from mmpretrain.models import TimmClassifier
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcakd.arguments import Size

from ..stages import find_backbone


def example_images(
    count: int, size: tuple[int, int], channels: int = 3
) -> torch.Tensor:
    """Make images ``(N, C, H, W)`` of which no two, and no two pixels, agree.

    On blank ones a network of zero biases gives zeros wherever it is right
    and wherever it is wrong.
    """
    shape = (count, channels, *size)
    return torch.linspace(-2, 2, math.prod(shape)).view(shape)


def make_samples(count: int, num_classes: int) -> list:
    """Make data samples of the first class, with every kind of label."""
    from mmpretrain.structures import DataSample

    score = torch.eye(num_classes)[0]
    return [
        DataSample(metainfo=dict(sample_idx=index))
        .set_gt_label(0)
        .set_gt_score(score)
        for index in range(count)
    ]


def describe_images(count: int, size: tuple[int, int]) -> list:
    """Describe unlabelled images of one size.

    Some detectors need this to make proposals, even without a loss.
    """
    sizes = ('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape')
    image = dict.fromkeys(sizes, size) | dict(scale_factor=(1.0, 1.0))
    return [
        BaseDataElement(metainfo=image | dict(img_id=index, sample_idx=index))
        for index in range(count)
    ]


def count_classes(output: Any) -> int | None:
    """Count the classes of a classifier of images by its output.

    Returns:
        int, optional: None for a model of another kind, such as a detector
        or segmentor.
    """
    output = getattr(output, 'logits', output)
    if isinstance(output, list | tuple):
        output = output[-1]
    if isinstance(output, torch.Tensor) and output.ndim == 2:
        return output.shape[1]
    return None


def native_size(model: nn.Module) -> Size | None:
    """Size of the images that a network was made for, if it tells."""
    _, backbone = find_backbone(model)
    patch_embed = getattr(backbone, 'patch_embed', None)
    return getattr(backbone, 'img_size', None) or getattr(
        patch_embed, 'init_input_size', None
    )


def try_training(student: nn.Module, inputs: torch.Tensor) -> None:
    """Run a classifier as in training, where some networks return more.

    Args:
        student (nn.Module): It is left in training mode, and its BatchNorm
            learns nothing.
        inputs (Tensor): ``(N, C, H, W)``.

    Raises:
        ValueError: It does not run, or returns something else.
    """
    student.train()
    for module in student.modules():
        # Its statistics are of the training set alone.
        if isinstance(module, _BatchNorm):
            module.eval()
    cure = (
        'if its network has auxiliary classifiers, build it without '
        '(aux_logits=False)'
    )
    try:
        with torch.random.fork_rng(devices=[]):
            output = student(inputs, mode='tensor')
    except Exception as error:
        raise ValueError(
            'the student runs in evaluation, but not in training: '
            f'{error or type(error).__name__}; {cure}'
        ) from error
    # Those that wrap a network of another package give all it returns.
    if isinstance(student, TimmClassifier) and isinstance(output, tuple):
        raise ValueError(
            f'the network of the student returns {len(output)} outputs, '
            f'where {type(student).__name__} expects class scores: {cure}'
        )
