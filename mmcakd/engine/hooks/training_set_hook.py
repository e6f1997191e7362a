"""What a part of the model must know of the training set."""

from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from mmcakd.registry import HOOKS


@HOOKS.register_module()
class TrainingSetHook(Hook):
    """Hand the labels of the training images to the parts that need them.

    These are the modules of the model with a method ``prepare_from_labels``,
    such as :class:`mmcakd.models.losses.CRDLoss`. Without one, nothing is
    read.

    Raises:
        ValueError: The training set does not tell its labels, or joins
            several data sets, whose samples have no index of their own.
    """

    # Before the EMAHook copies the model; and before weights are loaded,
    # since what is prepared may be in the checkpoint.
    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Read the labels, once, if the run trains."""
        # Asking for `runner.train_loop` would build it for a test.
        if not isinstance(runner._train_loop, BaseLoop):
            return
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        parts = [
            part
            for part in model.modules()
            if hasattr(part, 'prepare_from_labels')
        ]
        if parts:
            labels = read_training_labels(runner.train_dataloader.dataset)
            for part in parts:
                part.prepare_from_labels(labels)


def read_training_labels(dataset: Any) -> torch.Tensor:
    """Read the class of every image.

    Args:
        dataset (Dataset): A data set of MMPretrain, or one wrapped to be
            repeated, balanced or folded. ``sample_idx`` of its samples is
            the place in the innermost one.

    Returns:
        Tensor: ``(M,)``, for the innermost data set.

    Raises:
        ValueError: See :class:`TrainingSetHook`.
    """
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    name = type(dataset).__name__
    if hasattr(dataset, 'datasets'):
        raise ValueError(
            f'the training set is a {name} of {len(dataset.datasets)} data '
            'sets, whose samples share indices; write their annotations '
            'into one file'
        )
    if not hasattr(dataset, 'get_gt_labels'):
        raise ValueError(
            f'the training set {name} has no method get_gt_labels; give it '
            'one that returns the class indices of all samples'
        )
    labels = np.asarray(dataset.get_gt_labels())
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f'the training set {name} has no single class index for each '
            f'image, but {labels.dtype} labels of shape {labels.shape}'
        )
    return torch.from_numpy(labels).long()
