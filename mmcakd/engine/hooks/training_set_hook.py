"""What is wrong with a training set, and what the model must know of it."""

from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from mmpretrain.engine.hooks import SwitchRecipeHook
from mmpretrain.evaluation import (
    Accuracy,
    AveragePrecision,
    ConfusionMatrix,
    MultiLabelMetric,
    SingleLabelMetric,
)
from mmrazor.engine import (
    SelfDistillValLoop,
    SingleTeacherDistillValLoop,
    StopDistillHook,
)
from torch import nn
from torch.utils.data import DataLoader

from mmcakd.arguments import NonNegativeInt, PositiveInt, check_value
from mmcakd.datasets.pairs import check_pairs
from mmcakd.models.algorithms import CrossArchDistill
from mmcakd.models.headless import has_head
from mmcakd.models.teachers.teacher import DEFAULT_INPUT
from mmcakd.registry import HOOKS

from .utils import unwrap

#: Metrics of MMPretrain that read predicted classes.
CLASS_METRICS = (
    Accuracy,
    AveragePrecision,
    ConfusionMatrix,
    MultiLabelMetric,
    SingleLabelMetric,
)
#: Loops of MMRazor that validate a student, and a student and its teacher.
DISTILL_VAL_LOOPS = (SelfDistillValLoop, SingleTeacherDistillValLoop)


@HOOKS.register_module()
class TrainingSetHook(Hook):
    """Check the training set, and tell the model what it must know of it.

    Before anything is trained

    - a run without a single step is refused: no images, no whole batch, no
      epochs;
    - a validation loop of MMRazor for other algorithms is refused;
    - labels of no class are refused, of the head and of the teacher where its
      logits are compared with labels. Data sets that do not tell their labels
      pass, and so do those with several labels an image, or none;
    - modules with a method ``prepare_from_labels``, such as
      :class:`mmcakd.models.losses.CRDLoss`, get the labels of the training
      images;
    - modules with a method ``check_batch_size``, such as
      :class:`mmcakd.models.losses.InfoNCELoss`, get the number of images in
      the smallest batch of an epoch, and may refuse it;
    - modules with a method ``prepare_from_dataset``, such as
      :class:`mmcakd.models.algorithms.CrossArchDistill`, get the training
      set, whose pipeline may normalise images;
    - a ``SwitchRecipeHook`` that will mix images is refused where their
      classes or places are read, and where a sample has other inputs;
    - files that :class:`mmcakd.datasets.LoadPairedImage` will not find are
      named, and a pipeline that moves what is in an image alone is refused.

    Raises:
        ValueError: See above; or a part asks for labels, and the training set
            does not tell them, or joins several data sets, whose samples have
            no index of their own.
    """

    # Before the EMAHook copies the model; and before weights are loaded,
    # since what is prepared may be in the checkpoint.
    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Tell them, once, if the run trains."""
        # Asking for `runner.train_loop` would build it for a test.
        if not isinstance(runner._train_loop, BaseLoop):
            return
        model = unwrap(runner.model)
        check_steps(runner)
        check_val_loop(runner._val_loop, model)
        check_stopping(runner.hooks, model)
        loader = runner.train_dataloader
        smallest = smallest_batch(loader)
        for part in model.modules():
            if smallest is not None and hasattr(part, 'check_batch_size'):
                part.check_batch_size(smallest)
            if hasattr(part, 'prepare_from_dataset'):
                part.prepare_from_dataset(loader.dataset)
        check_labels(model, loader.dataset)
        check_switches(runner.hooks, model)
        check_evaluators(runner, model)
        check_pairs(
            loader.dataset,
            *(
                recipe['train_pipeline']
                for recipe in list_recipes(runner.hooks)
                if 'train_pipeline' in recipe
            ),
        )
        parts = [
            part
            for part in model.modules()
            if hasattr(part, 'prepare_from_labels')
        ]
        if parts:
            labels = read_training_labels(loader.dataset)
            for part in parts:
                part.prepare_from_labels(labels)


def check_switches(hooks: list[Hook], model: nn.Module) -> None:
    """Check that no hook will mix images whose labels must not be mixed.

    Args:
        hooks (list[Hook]): Those of the run; MMPretrain's
            ``SwitchRecipeHook`` tells what it will switch on.
        model (nn.Module): Any; it and its preprocessor are asked by their
            method ``check_mixing``, if they have one.

    Raises:
        ValueError: One will.
    """
    asked = [model, getattr(model, 'data_preprocessor', None)]
    checks = [m.check_mixing for m in asked if hasattr(m, 'check_mixing')]
    for recipe in list_recipes(hooks):
        for check in checks:
            check(recipe.get('batch_augments'))


def list_recipes(hooks: list[Hook]) -> list[dict]:
    """List what MMPretrain's ``SwitchRecipeHook`` will switch to."""
    return [
        recipe
        for hook in hooks
        if isinstance(hook, SwitchRecipeHook)
        for recipe in hook.schedule.values()
    ]


def check_stopping(hooks: list[Hook], model: nn.Module) -> None:
    """Check that something is left to learn after distillation is stopped.

    Args:
        hooks (list[Hook]): Those of the run; MMRazor's ``StopDistillHook``
            stops it.
        model (nn.Module): Any; only a
            :class:`mmcakd.models.algorithms.CrossArchDistill` is checked.

    Raises:
        ValueError: Nothing is.
    """
    stops = any(isinstance(hook, StopDistillHook) for hook in hooks)
    if (
        stops
        and isinstance(model, CrossArchDistill)
        and not model.student_loss_counts
    ):
        raise ValueError(
            'StopDistillHook stops distillation, but the losses of the '
            'student itself do not count, so that nothing would be left to '
            'learn: remove the hook, or end training there'
        )


def check_evaluators(runner: Runner, model: nn.Module) -> None:
    """Check that no metric asks a student without a head for classes.

    Raises:
        ValueError: One does.
    """
    if not isinstance(model, CrossArchDistill) or has_head(model.student):
        return
    for loop in (runner._val_loop, runner._test_loop):
        evaluator = getattr(loop, 'evaluator', None)
        for metric in getattr(evaluator, 'metrics', ()):
            if isinstance(metric, CLASS_METRICS):
                raise ValueError(
                    f'the student has no head, but {type(metric).__name__} '
                    'evaluates its classes: take a metric of features, which '
                    'are `feature` of its predictions, or remove it'
                )


def check_steps(runner: Runner) -> None:
    """Check that a run takes a step.

    Schedules are made for a number of steps, and fail on none without saying
    why; so this may be called before ``runner.train()``, which then finds the
    loop that is built here.

    Args:
        runner (Runner): Has a training loop, or the config of one.

    Raises:
        ValueError: There are no images, no whole batch, or no epochs or
            iterations; or validation has no interval.
    """
    cfg = runner._train_loop if isinstance(runner._train_loop, dict) else {}
    limits = ('max_epochs', 'max_iters')
    for name in limits:
        if name in cfg:
            check_value('train_cfg', name, cfg[name], PositiveInt)
    loop = runner.train_loop
    if loop is None:
        return  # `runner.train()` says what is missing
    loader = loop.dataloader
    if _length(loader.dataset) == 0:
        raise ValueError(
            'the training set is empty: check data_root, data_prefix and '
            'ann_file of train_dataloader.dataset'
        )
    batches = loader.batch_sampler
    own = getattr(batches, 'sampler', None)
    # An InfiniteSampler goes on from one epoch to the next.
    if not isinstance(own, InfiniteSampler) and _length(loader) == 0:
        share = _length(own)
        raise ValueError(
            f'there is no batch to train on: {_length(loader.dataset)} '
            f'training images for {get_world_size()} process(es) are {share} '
            'each, fewer than a batch of '
            f'{getattr(batches, "batch_size", None)}, and drop_last=True '
            'drops them; set train_dataloader.batch_size to at most '
            f'{share}, or drop_last=False'
        )
    limit = limits[not isinstance(loop, EpochBasedTrainLoop)]
    check_value('train_cfg', limit, getattr(loop, limit), PositiveInt)
    if runner._val_loop is not None:
        for name, kind in (
            ('val_interval', PositiveInt),
            ('val_begin', NonNegativeInt),
        ):
            check_value('train_cfg', name, getattr(loop, name, 1), kind)


def check_val_loop(loop: BaseLoop | None, model: nn.Module) -> None:
    """Check that a validation loop of MMRazor can validate a distillation.

    Raises:
        ValueError: It validates what other algorithms of MMRazor make, or a
            teacher that does not predict from the images of validation.
    """
    if not isinstance(model, CrossArchDistill):
        return
    if isinstance(loop, SingleTeacherDistillValLoop):
        inputs = [t.inputs for t in model.live_teachers.values()]
        if len(model.teachers) != 1 or inputs != [DEFAULT_INPUT]:
            raise ValueError(
                'val_cfg.type is SingleTeacherDistillValLoop, which validates '
                'a teacher on the images of the student, but there is none, '
                'or several, or it is stored or reads another input: remove '
                'it from val_cfg'
            )
    if type(loop).__module__.startswith('mmrazor.') and not isinstance(
        loop, DISTILL_VAL_LOOPS
    ):
        names = [f'mmrazor.{kind.__name__}' for kind in DISTILL_VAL_LOOPS]
        raise ValueError(
            f'val_cfg.type is {type(loop).__name__}, which validates subnets, '
            f'pruned or quantised models, but a {type(model).__name__} has '
            f'none: remove it from val_cfg, or set {" or ".join(names)}'
        )


def check_labels(model: nn.Module, dataset: Any) -> None:
    """Check that every label of the training set is a class of the model.

    Args:
        model (nn.Module): A classifier, or an algorithm that tells by
            ``label_readers`` which networks' logits meet labels.
        dataset (Dataset): Tells its labels by ``get_gt_labels``, or passes.

    Raises:
        ValueError: There are more.
    """
    readers = getattr(model, 'label_readers', lambda: dict(model=model))()
    classes = {
        whose: count
        for whose, reader in readers.items()
        if (count := count_head_classes(reader)) is not None
    }
    labels = find_labels(dataset) if classes else None
    if labels is None:
        return
    for whose, count in classes.items():
        # PyTorch's losses leave out what is -100.
        beyond = ((labels < 0) & (labels != -100)) | (labels >= count)
        if beyond.any():
            worst = labels[beyond].max()
            raise ValueError(
                f'{beyond.sum()} of {len(labels)} training images have labels '
                f"beyond the {count} classes of the {whose}'s head, such as "
                f'label {worst}: set num_classes of the head to the classes '
                'of the training set, of which the first has label 0, or '
                'correct the labels'
            )


def count_head_classes(model: nn.Module) -> int | None:
    """Count the classes of a classifier by its head.

    Returns:
        int, optional: None for a model of another kind.

    Examples:
        >>> from mmpretrain.models import TimmClassifier
        >>> from mmcakd.engine.hooks.training_set_hook import (
        ...     count_head_classes)
        >>> count_head_classes(TimmClassifier('resnet18', num_classes=7))
        7
    """
    head = getattr(model, 'head', None)
    net = getattr(model, 'model', None)
    # MMPretrain's heads, timm's networks, Hugging Face's configs.
    for owner, name in (
        (head, 'num_classes'),
        (net, 'num_classes'),
        (getattr(net, 'config', None), 'num_labels'),
    ):
        if isinstance(getattr(owner, name, None), int):
            return getattr(owner, name)
    if not isinstance(net, nn.Module):
        return None
    linear = [part for part in net.modules() if isinstance(part, nn.Linear)]
    return linear[-1].out_features if linear else None


def find_labels(dataset: Any) -> np.ndarray | None:
    """Find the labels of all images, also of joined and wrapped data sets.

    Returns:
        ndarray, optional: Class indices ``(M,)``; None if a data set does not
        tell them, or has several an image, or none.
    """
    if hasattr(dataset, 'datasets'):
        found = [find_labels(part) for part in dataset.datasets]
        complete = found and all(part is not None for part in found)
        return np.concatenate(found) if complete else None
    if hasattr(dataset, 'dataset'):
        return find_labels(dataset.dataset)
    if not hasattr(dataset, 'get_gt_labels'):
        return None
    try:
        labels = np.asarray(dataset.get_gt_labels())
    # Images without labels, and several labels, as many as an image has.
    except (KeyError, ValueError):
        return None
    is_class = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    return labels if is_class else None


def _length(data: Any) -> int | None:
    """Count, where something that is iterated over can be counted."""
    try:
        return len(data)
    except TypeError:
        return None


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
    try:
        labels = np.asarray(dataset.get_gt_labels())
    except KeyError as error:
        raise ValueError(
            f'the training set {name} has no labels, which a part of the '
            'model needs before training, such as a CRDLoss; take a data set '
            'with labels, or another loss'
        ) from error
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f'the training set {name} has no single class index for each '
            f'image, but {labels.dtype} labels of shape {labels.shape}'
        )
    return torch.from_numpy(labels).long()
