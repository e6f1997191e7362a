"""Show what a distillation config makes, without training.

Prints teacher and student, where their stages are, the connectors, the losses
and their shares on an example batch, the cost of a step in FLOPs and memory,
and whether the data can be read. It downloads nothing, and needs no data. The
exit status is 1 when the config does not build, when data that are there
cannot be read, and with --data also when they are not there.
"""

import argparse
import copy
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, init_default_scope
from rich.console import Console
from rich.table import Table
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

import mmcakd  # noqa: F401
from mmcakd.models.algorithms import CrossArchDistill
from mmcakd.models.algorithms.example import (
    count_classes,
    describe_images,
    example_images,
    make_samples,
)
from mmcakd.models.algorithms.trial import example_inputs
from mmcakd.models.distillers import Step
from mmcakd.models.distillers.references import STUDENT
from mmcakd.models.headless import has_head
from mmcakd.models.losses import reads_logits
from mmcakd.models.recorders import StageOutputsRecorder
from mmcakd.models.stages import StageTokens
from mmcakd.models.teachers import read_model_cfg, teachers_of
from mmcakd.models.teachers.sources import SPELLINGS
from mmcakd.models.teachers.teacher import DEFAULT_INPUT
from mmcakd.models.teachers.weights import zoo_name
from mmcakd.registry import MODELS
from mmcakd.utils import read_config
from mmcakd.utils.command_line import Command, describe_error
from mmcakd.utils.export import without_pretraining

#: Enough for losses that compare the images of a batch.
BATCH = 3


def count_attention(query, key, value, *args, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def count_attention_backward(grad, query, key, value, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def count_conv_backward(grad, inputs, weight, *args, **kwargs) -> int:
    """As much as the forward for the inputs, and again for the weights."""
    (*_, transposed, _, _, needed) = args
    forward = conv_flop_count(inputs, weight, grad, transposed)
    return forward * (needed[0] + needed[1])


#: What torch's counter leaves out on a CPU, and what it gets wrong: the
#: gradients of weights in groups.
FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        count_attention
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        count_attention_backward
    ),
    torch.ops.aten.convolution_backward: count_conv_backward,
}

#: What a check comes to.
FINE, MISSING, PROBLEM = 'ok', 'missing', 'PROBLEM'

#: Columns of tables that are aligned on the right.
NUMERIC = ('parameters', 'FLOPs', 'weight', 'example', 'share', 'memory')

#: Values an optimizer keeps for each weight; 2 for those not listed.
OPTIMIZER_STATES = dict(Lion=1, RMSprop=1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a distillation')
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        help='size of the images, H [W] (default: input_size of the model)',
    )
    parser.add_argument(
        '--load-teacher',
        action='store_true',
        help='load teacher_ckpt too, which may download it',
    )
    parser.add_argument(
        '--data',
        action='store_true',
        help='missing data are a problem',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='override settings of the config: a.b=1 c="[1,2]" d="(x,y)"',
    )
    return parser.parse_args()


class SavedForBackward:
    """Bytes that autograd keeps until the backward, weights not counted."""

    def __init__(self, weights: Iterator[torch.Tensor]) -> None:
        self.weights = {w.untyped_storage().data_ptr() for w in weights}
        self.storages: dict[int, int] = {}
        self.kept: list[torch.Tensor] = []

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.storages[storage.data_ptr()] = storage.nbytes()
            # So that no later tensor gets the same address.
            self.kept.append(tensor.detach())
        return tensor

    @contextmanager
    def measure(self) -> Iterator[None]:
        hooks = torch.autograd.graph.saved_tensors_hooks
        with hooks(self._pack, lambda tensor: tensor):
            yield

    @property
    def total(self) -> int:
        return sum(self.storages.values())


class DryRun:
    """One step of a distillation on an example, looked at from all sides."""

    def __init__(
        self, cfg: Config, size: tuple[int, int] | None, load_teacher: bool
    ) -> None:
        self.cfg = cfg
        student, self.teachers = read_models(cfg)
        self.fetches = {
            name: without_pretraining(source) != source
            for name, source in {
                STUDENT: student,
                **{
                    n: t['model']
                    for n, t in self.teachers.items()
                    if 'model' in t
                },
            }.items()
        }
        self.model = build_model(cfg, student, self.teachers, load_teacher)
        self.size = size or self.model.input_size
        if self.size is None:
            raise ValueError('say by --size how large the images are')
        self.flops: dict[str, float] = {}
        self.saved: dict[str, float] = {}
        self.shapes: dict[str, str] = {}
        self.stages: dict[str, list] = {}
        self._run()

    def _run(self) -> None:
        model, distiller = self.model, self.model.distiller
        inputs = {
            name: example_images(BATCH, self.size, example.shape[1])
            for name, example in example_inputs(model, self.size).items()
        }
        images = inputs[DEFAULT_INPUT]
        self.classes: dict[str, int] = {}
        samples = describe_images(BATCH, self.size)
        for name, teacher in model.live_teachers.items():
            teacher.register_forward_hook(
                self._note_classes(name, teacher.model)
            )
        with torch.no_grad():
            output = model.student.eval()(images, samples, mode='tensor')
        self._note_classes(STUDENT, model.student)(None, images, output)
        self.is_classifier = (
            has_head(model.student) and count_classes(output) is not None
        )
        if self.is_classifier:
            samples = make_samples(BATCH, self.classes[STUDENT])
        for recorders in self.recorders.values():
            for recorder in recorders:
                recorder.stages_to_keep = None
        for name, connector in distiller.connectors.items():
            connector.register_forward_hook(self._note_shape(name))

        model.train()
        with distiller.step(inputs, samples) as step:
            with self._measure('teachers'):
                model.run_teachers(step)
            with self._measure('student'):
                student_losses, outputs = self._run_student(step)
            for whose, recorders in self.recorders.items():
                for recorder in recorders:
                    if any(recorder.data_buffer):
                        self.stages[whose] = describe_stages(recorder)
            with self._measure('connectors'):
                losses = distiller.compute_distill_losses(step)
            self.losses, total = self._sum(student_losses, losses)
            with self._measure('backward'):
                sum([leaf.sum() for leaf in outputs], total).backward()

    def _run_student(self, step: Step) -> tuple[dict, list[torch.Tensor]]:
        """Run the student in training.

        Returns:
            tuple: Its losses by name, and outputs to propagate back from
            where there are no losses.
        """
        counts = self.model.student_loss_counts
        if self.is_classifier:
            losses = self.model.run_student(step)
            return (losses if counts else {}), []
        # The example has no objects that a detector could learn.
        with step.recording(STUDENT):
            outputs = self.model.student(
                step.inputs[DEFAULT_INPUT], step.data_samples, mode='tensor'
            )
        return {}, [
            leaf
            for leaf in tree_leaves(outputs)
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad
        ]

    def _sum(
        self, student: dict, distill: dict
    ) -> tuple[dict[str, float], torch.Tensor]:
        """Weigh and add up all losses, as in training.

        Returns:
            tuple: Their values by name, and the sum, which has a gradient.
        """
        model, values, total = self.model, {}, 0
        for whose, weight, losses in (
            ('student', model.student_loss_weight, student),
            ('distill', 1, distill),
        ):
            for name, loss in losses.items():
                if 'loss' in name:
                    # One may be a list.
                    loss, _ = model.parse_losses({'loss': loss})
                    total = total + weight * loss
                    values[f'{whose}.{name}'] = weight * float(loss)
        return values, total

    def compares_logits_of(self, teacher: str) -> bool:
        """Whether a loss compares the class scores of a teacher."""
        graph = self.model.distiller.graph
        return any(
            reads_logits(graph.losses[name])
            and graph.reads_logits(references.values(), teacher)
            for name, references in graph.loss_inputs.items()
        )

    @contextmanager
    def _measure(self, part: str) -> Iterator[None]:
        weights = [*self.model.parameters()]
        for teacher in self.model.live_teachers.values():
            weights += teacher.parameters()
        saved = SavedForBackward(weights)
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        with counter, saved.measure():
            yield
        self.flops[part] = counter.get_total_flops() / BATCH
        self.saved[part] = saved.total / BATCH

    @property
    def recorders(self) -> dict[str, list[StageOutputsRecorder]]:
        distiller = self.model.distiller
        return {
            whose: [
                recorder
                for recorder in manager.recorders.values()
                if isinstance(recorder, StageOutputsRecorder)
            ]
            for whose, manager in distiller.recorders.items()
        }

    def _note_classes(self, whose: str, network: torch.nn.Module):
        def note(module, inputs, output) -> None:
            # Without a head it has features, which are no class scores.
            if has_head(network):
                classes = count_classes(output) or classes_of_heads(network)
                self.classes[whose] = classes

        return note

    def _note_shape(self, name: str):
        def note(module, inputs, outputs) -> None:
            if isinstance(outputs, dict):
                outputs = tuple(outputs.values())
            several = isinstance(outputs, tuple)
            shapes = [shape(o) for o in (outputs if several else [outputs])]
            self.shapes[name] = ', '.join(shapes)

        return note


def build_model(
    cfg: Config,
    student: dict,
    teachers: dict[str, dict],
    load_teacher: bool,
) -> CrossArchDistill:
    built = {
        name: source
        if load_teacher
        else {key: value for key, value in source.items() if key != 'ckpt'}
        for name, source in teachers.items()
    }
    model = {k: v for k, v in cfg.model.items() if k not in SPELLINGS}
    model = without_pretraining(
        {**model, 'architecture': student, 'teachers': built}
    )
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    # How each weight was initialised, and that the teacher's were not loaded.
    logging.disable(logging.WARNING)
    try:
        model = MODELS.build(model)
    finally:
        logging.disable(logging.NOTSET)
    if not isinstance(model, CrossArchDistill):
        raise ValueError(
            f'the model is a {type(model).__name__}; a dry run knows '
            'mmcakd.CrossArchDistill only'
        )
    return model


def read_models(cfg: Config) -> tuple[dict, dict[str, dict]]:
    """Read what the config only names: the student, and teachers by name."""
    if 'architecture' not in cfg.model:
        raise ValueError(
            'this is no distillation config: model has no architecture'
        )
    teachers = teachers_of(cfg.model)
    for source in teachers.values():
        if isinstance(source.get('model'), str):
            source['model'] = read_model_cfg(source['model'], 'teacher')
    student = cfg.model.architecture
    if isinstance(student, str):
        student = read_model_cfg(student, 'student')
    return student, teachers


def classes_of_heads(network: torch.nn.Module) -> int:
    """Classes of a detector or segmentor; its RPN alone would have one."""
    return max(
        (
            getattr(module, 'num_classes', None) or 0
            for module in network.modules()
        ),
        default=0,
    )


def describe_stages(recorder: StageOutputsRecorder) -> list:
    return [
        (tap.source, tap.layout, shape(recorder.get_record_data(data_idx=i)))
        for i, tap in enumerate(recorder.taps)
    ]


def shape(feature: torch.Tensor | tuple) -> str:
    """Shape of one sample: ``C x H x W``, and how many tokens beside."""
    if isinstance(feature, StageTokens):
        extra = feature.extra.shape[1]
        return shape(feature.map) + (f' + {extra}' if extra else '')
    if isinstance(feature, tuple):
        return f'({", ".join(map(shape, feature))})'
    return ' x '.join(map(str, feature.shape[1:]))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def millions(number: float) -> str:
    return f'{number / 1e6:,.2f} M'


def giga(number: float) -> str:
    return f'{number / 1e9:,.2f} G'


def mebibytes(number: float) -> str:
    return f'{number / 2**20:,.0f} MiB'


def table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify='left')
    for column in columns:
        numeric = column in NUMERIC
        side = 'right' if numeric else 'left'
        made.add_column(column, justify=side, overflow='fold')
    return made


def models_table(run: DryRun) -> Table:
    model = run.model
    made = table('Models', '', 'type', 'parameters', 'images', 'weights from')
    rows = {
        STUDENT: (
            model.student,
            run.size,
            'what its own config names' if run.fetches[STUDENT] else 'scratch',
        )
    }
    for name, teacher in model.live_teachers.items():
        size = teacher.input_size or run.size
        rows[name] = teacher.model, size, weights_of(run, name)
    for name, (network, size, weights) in rows.items():
        backbone = getattr(network, 'backbone', network)
        made.add_row(
            name,
            f'{type(network).__name__} ({type(backbone).__name__})',
            millions(count(network)),
            ' x '.join(map(str, size)),
            weights,
        )
    for name, stored in model.distiller.stored.items():
        made.add_row(name, type(stored).__name__, '', '', 'a store')
    return made


def weights_of(run: DryRun, teacher: str) -> str:
    """Say where the weights of a teacher come from."""
    named = teachers_of(run.cfg.model)[teacher]
    if named.get('ckpt'):
        return str(named['ckpt'])
    if zoo_name(named['model']):
        return 'the model zoo, when training starts'
    if run.fetches[teacher]:
        return 'what its own config names'
    return 'NOWHERE: set teacher_ckpt'


def stages_table(run: DryRun) -> Table:
    made = table('Stages', '', 'stage', 'path', 'layout', 'map')
    for whose, stages in run.stages.items():
        for index, stage in enumerate(stages):
            made.add_row(whose, str(index + 1), *stage)
    return made


def connectors_table(run: DryRun) -> Table:
    distiller = run.model.distiller
    made = table('Connectors', '', 'type', 'reads', 'output', 'parameters')
    for name, connector in distiller.connectors.items():
        inputs = distiller.graph.connector_inputs.get(name, {})
        made.add_row(
            name,
            type(connector).__name__,
            ', '.join(map(str, inputs.values())),
            run.shapes.get(name, ''),
            f'{count(connector):,}',
        )
    return made


def losses_table(run: DryRun) -> Table:
    model, distiller = run.model, run.model.distiller
    made = table('Losses', '', 'type', 'weight', 'example', 'share', 'reads')
    total = sum(run.losses.values())
    rows = {}
    head = type(getattr(model.student, 'head', model.student)).__name__
    for name in run.losses if run.is_classifier else ['student.loss*']:
        if name.startswith('student.') and model.student_loss_counts:
            reads = 'hard labels' if run.is_classifier else 'annotations'
            rows[name] = head, model.student_loss_weight, reads
    for name, references in distiller.graph.loss_inputs.items():
        loss = distiller.distill_losses[name]
        rows[f'distill.{name}'] = (
            type(loss).__name__,
            getattr(loss, 'loss_weight', 1),
            ', '.join(f'{key}: {ref}' for key, ref in references.items()),
        )
    for name, (kind, weight, reads) in rows.items():
        value = run.losses.get(name)
        known = value is not None
        made.add_row(
            name,
            kind,
            f'{weight:g}',
            f'{value:.4g}' if known else '',
            f'{value / total:.1%}' if known and total else '',
            reads,
        )
    made.caption = (
        'On an example batch, before training, with the weights that are '
        'loaded here.'
    )
    return made


def cost_table(run: DryRun) -> Table:
    """FLOPs an image and memory of a batch, both in float32."""
    batch = run.cfg.get('train_dataloader', {}).get('batch_size', 1)
    wrapper = run.cfg.get('optim_wrapper', {})
    optimizer = wrapper.get('student', wrapper).get('optimizer', {})
    kind = optimizer.get('type', '').rpartition('.')[2]
    states = OPTIMIZER_STATES.get(kind, 2)
    if kind == 'SGD':
        states = int(bool(optimizer.get('momentum')))

    made = table(
        f'Cost: FLOPs an image, memory of a batch of {batch}, float32',
        '',
        'FLOPs',
        'memory',
        'made of',
    )
    memory = 0
    model = run.model
    for name, modules in (
        ('teachers', model.live_teachers.values()),
        ('student', [model.student]),
        ('connectors', [model.distiller]),
    ):
        trained = name != 'teachers'
        weights = sum(map(count, modules)) * 4 * (2 + states if trained else 1)
        saved = run.saved[name] * batch
        kept = 'weights, gradients, optimizer' if trained else 'weights'
        made.add_row(
            name,
            giga(run.flops[name]),
            mebibytes(weights + saved),
            f'{kept} {mebibytes(weights)}, for backward {mebibytes(saved)}',
        )
        memory += weights + saved
    made.add_row('backward', giga(run.flops['backward']), '', '')
    made.add_section()
    flops = sum(run.flops.values())
    made.add_row('step', giga(flops), mebibytes(memory), '')
    made.caption = (
        f'Counted on a batch of {BATCH}, with two FLOPs for a multiplication '
        'and an addition. The backward pass '
        'is counted as it runs: frozen parts have no gradients of weights.'
    )
    return made


def innermost(dataset: dict) -> dict:
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def downloads(dataset: dict) -> bool:
    """Whether a data set fetches what is not there when it is built."""
    kind = dataset.get('type')
    if isinstance(kind, str):
        # In the scope in which it will be built.
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    return kind is not None and 'download' in signature(kind).parameters


def check_split(cfg: Config, split: str, run: DryRun) -> tuple[str, str]:
    """Read the first image of a split; say what was found, and if it fits."""
    cfg = copy.deepcopy(cfg[f'{split}_dataloader'].dataset)
    inner = innermost(cfg)
    root = inner.get('data_root') or ''
    if root and not os.path.isdir(root):
        return f'there is no folder {root}', MISSING
    fetches = downloads(inner)
    if fetches:
        inner.download = False
    try:
        dataset = DATASETS.build(cfg)
        image = dataset.get_data_info(0).get('img_path', 'the first image')
    except Exception as error:
        absent = fetches or (not root and isinstance(error, FileNotFoundError))
        found = f'the index of {root or split} cannot be read: {error}'
        return found, MISSING if absent else PROBLEM
    try:
        inputs = dataset.prepare_data(0)['inputs']
    except Exception as error:
        return f'{image} cannot be read: {error}', PROBLEM
    size = tuple(inputs.shape[-2:])
    classes = len(dataset.metainfo.get('classes') or ())
    found = f'{len(dataset)} images, {" x ".join(map(str, size))}'
    if classes:
        found += f', {classes} classes'
        if classes != run.classes.get(STUDENT, classes):
            return f'{found}; the student has another number', PROBLEM
    # Detectors see images of any size.
    fixed = run.is_classifier and split == 'train'
    if fixed and size != run.size:
        return f'{found}; the models were read at another size', PROBLEM
    return found, FINE


def check_classes(run: DryRun) -> tuple[str, str]:
    """Compare the classes of the models, where it matters."""
    if not run.classes:
        return 'no model has a head', FINE
    student = run.classes.get(STUDENT)
    found = ', '.join(f'{name} {n}' for name, n in run.classes.items())
    others = [name for name, n in run.classes.items() if n != student]
    if not others:
        return found, FINE
    if any(run.compares_logits_of(name) for name in others):
        return found, PROBLEM
    return f"{found}; no loss compares the others' class scores", FINE


def checks_table(
    cfg: Config, run: DryRun, needs_data: bool
) -> tuple[Table, bool]:
    checks = dict(classes=check_classes(run))
    for split in ('train', 'val', 'test'):
        if cfg.get(f'{split}_dataloader') is not None:
            found, status = check_split(cfg, split, run)
            if needs_data and status == MISSING:
                status = PROBLEM
            checks[split] = found, status
    made = table('Checks', '', '', 'found')
    for name, (found, status) in checks.items():
        made.add_row(name, status, found)
    return made, all(status != PROBLEM for _, status in checks.values())


def main() -> int:
    args = parse_args()
    # Wide enough for paths where the output is no terminal.
    console = Console(width=None if sys.stdout.isatty() else 160)
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    size = args.size and (args.size[0], args.size[-1])
    try:
        run = DryRun(cfg, size, args.load_teacher)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        problem = describe_error(error)
        print(f'{args.config} does not build: {problem}', file=sys.stderr)
        return 1
    checks, fine = checks_table(cfg, run, args.data)
    for made in (
        models_table(run),
        stages_table(run),
        connectors_table(run),
        losses_table(run),
        cost_table(run),
        checks,
    ):
        if made.row_count:
            console.print(made)
    return 0 if fine else 1


if __name__ == '__main__':
    with Command():
        sys.exit(main())
