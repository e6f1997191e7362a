"""What a part of the model must know of the training set."""

from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from mmcakd.registry import HOOKS


@HOOKS.register_module()
class TrainingSetHook(Hook):
    """Tell the parts of the model what they must know of the training set.

    - Modules with a method ``prepare_from_labels``, such as
      :class:`mmcakd.models.losses.CRDLoss`, get the labels of the training
      images. Without such a module, no label is read.
    - Modules with a method ``check_batch_size``, such as
      :class:`mmcakd.models.losses.InfoNCELoss`, get the number of images in
      the smallest batch of an epoch, and may refuse it.

    Raises:
        ValueError: The training set does not tell its labels, or joins
            several data sets, whose samples have no index of their own; or
            the smallest batch is too small for a part.
    """

    # Before the EMAHook copies the model; and before weights are loaded,
    # since what is prepared may be in the checkpoint.
    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Tell them, once, if the run trains."""
        # Asking for `runner.train_loop` would build it for a test.
        if not isinstance(runner._train_loop, BaseLoop):
            return
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        loader = runner.train_dataloader
        smallest = smallest_batch(loader)
        for part in model.modules():
            if smallest is not None and hasattr(part, 'check_batch_size'):
                part.check_batch_size(smallest)
        parts = [
            part
            for part in model.modules()
            if hasattr(part, 'prepare_from_labels')
        ]
        if parts:
            labels = read_training_labels(loader.dataset)
            for part in parts:
                part.prepare_from_labels(labels)


def smallest_batch(loader: DataLoader) -> int | None:
    """Count the images of the smallest batch of an epoch on this process.

    Args:
        loader (DataLoader): The training data.

    Returns:
        int, optional: The batch size, or the rest of the epoch. None for a
        batch sampler of one's own that does not tell its batch size.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> from mmcakd.engine.hooks.training_set_hook import smallest_batch
        >>> smallest_batch(DataLoader(range(9), batch_size=4))
        1
        >>> smallest_batch(DataLoader(range(9), batch_size=4, drop_last=True))
        4
    """
    batches = loader.batch_sampler
    size = getattr(batches, 'batch_size', None)
    if size is None:
        return None
    # It goes on from one epoch to the next.
    endless = isinstance(batches.sampler, InfiniteSampler)
    if endless or batches.drop_last:
        return size
    return len(batches.sampler) % size or size


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
