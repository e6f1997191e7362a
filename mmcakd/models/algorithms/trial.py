"""Running the models of a distillation on an example, before training."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from mmpretrain.models import BaseClassifier
from torch import nn

from ..distillers.references import STUDENT
from ..distillers.step import ExampleStep
from ..distillers.trial import check_student_learns
from ..headless import has_head
from ..teachers import Teacher
from ..teachers.normalisation import read_normalisation
from ..teachers.sources import called
from ..teachers.teacher import DEFAULT_INPUT, count_input_channels
from .example import (
    count_classes,
    describe_images,
    example_images,
    make_samples,
    try_training,
)

if TYPE_CHECKING:
    from .cross_arch_distill import CrossArchDistill


def example_inputs(
    algorithm: 'CrossArchDistill', size: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """Make a few images of each input, normalised as in training.

    Args:
        algorithm (CrossArchDistill): The models that see them.
        size (tuple[int, int]): Their size ``(H, W)``.
    """
    count = max(2, algorithm.distiller.graph.min_images)
    readers: dict[str, Teacher | None] = {DEFAULT_INPUT: None}
    for teacher in algorithm.live_teachers.values():
        if readers.get(teacher.inputs) is None or teacher.own is not None:
            readers[teacher.inputs] = teacher
    examples = {}
    for name, teacher in readers.items():
        reads = algorithm.student if name == DEFAULT_INPUT else teacher.model
        channels = count_input_channels(reads) or 3
        inputs = example_images(count, size, channels)
        if teacher is not None and teacher.own is not None:
            # Made of pixels, since the teacher will undo what was done.
            normalise = read_normalisation(algorithm.preprocessor_of(teacher))
            inputs = normalise((inputs + 2) * 255 / 4)
        examples[name] = inputs
    return examples


def run_example(algorithm: 'CrossArchDistill', step: ExampleStep) -> None:
    """Run all models on an example, as in a training step.

    Its samples have labels if the student classifies images.
    """
    student, graph = algorithm.student, algorithm.distiller.graph
    images = step.inputs[DEFAULT_INPUT]
    count, size = len(images), tuple(images.shape[-2:])
    step.data_samples = describe_images(count, size)
    was_training = student.training
    # MMPretrain freezes stages when a network is switched to training.
    student.train().eval()
    outputs = {}
    for name, teacher in algorithm.live_teachers.items():
        run = partial(teacher, step.inputs[teacher.inputs])
        outputs[name] = _run(name, run, step)
        missing = graph.missing_records(step, name)
        if missing and has_head(teacher.model):
            algorithm.computing_losses.add(name)
            _run_with_loss(name, run, teacher.model, outputs[name], step)
    learns = algorithm.student_trainable
    run = partial(student, images)
    with torch.set_grad_enabled(learns):
        outputs[STUDENT] = _run(STUDENT, run, step)
        if graph.missing_records(step, STUDENT) and has_head(student):
            algorithm.computing_losses.add(STUDENT)
            _run_with_loss(STUDENT, run, student, outputs[STUDENT], step)
    if isinstance(student, BaseClassifier):
        try_training(student, images)
    if learns:
        check_student_learns(graph, step, student)
    student.train(was_training)
    classes = count_classes(outputs[STUDENT]) if has_head(student) else None
    if classes:
        step.data_samples = make_samples(count, classes)


def _run(name: str, run: partial, step: ExampleStep) -> Any:
    """Run a model as a plain network."""
    try:
        with step.recording(name):
            return run(step.data_samples, mode='tensor')
    except Exception as error:
        _, channels, *size = run.args[0].shape
        cure = (
            'set img_size of its backbone or input_size of the algorithm'
            if name == STUDENT
            else 'set its size, teacher=dict(model=..., input_size=...), to '
            "one it accepts, or take one for images of the student's channels"
        )
        raise ValueError(
            f'the {called(name)} cannot run on images of {tuple(size)} and '
            f'{channels} channels: {error or type(error).__name__}; {cure}'
        ) from error


def _run_with_loss(
    name: str, run: partial, network: nn.Module, output: Any, step: ExampleStep
) -> None:
    """Record what happens only where a model computes its losses."""
    classes = count_classes(output)
    if not (isinstance(network, BaseClassifier) and classes):
        # Annotations of objects cannot be made up.
        step.left_out.add(name)
        return
    samples = make_samples(len(step.data_samples), classes)
    with step.recording(name):
        run(samples, mode='loss')
