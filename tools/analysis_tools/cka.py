"""Draw how alike the layers of networks are: CKA heatmaps.

    cka.py CONFIG CHECKPOINT [CONFIG2 CHECKPOINT2]
    cka.py DISTILLATION CHECKPOINT [--before CHECKPOINT]

Of two configs the two models are compared, layer by layer: each with itself,
and one with the other; a single plain one is compared with itself. A
distillation config alone shows its student before and after, each with itself
and with each teacher that sees the images of the student. Next to another
config it stands for its student.

A checkpoint is one of a run or an exported one; a config that says
`teacher_ckpt` needs none. Images are those that the first config tests on.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

import mmcakd  # noqa: F401
from mmcakd.evaluation import MinibatchCKA, linear_gram
from mmcakd.models.stages import find_backbone, find_taps
from mmcakd.models.teachers import (
    LiveTeacher,
    build_model,
    fit_weights,
    load_weights,
    read_checkpoint,
    teachers_of,
)
from mmcakd.models.teachers.sources import is_stored
from mmcakd.models.teachers.teacher import DEFAULT_INPUT
from mmcakd.models.teachers.weights import RANDOM
from mmcakd.utils import (
    Command,
    read_config,
    replacing,
    student_config,
    student_state_dict,
)

CHECKPOINTS = ('.pth', '.pt', '.bin', '.safetensors')

#: Residual and transformer blocks of MMPretrain and timm, in the backbone.
BLOCKS = re.compile(
    r'layer\d+(\.\d+)?'  # ResNet, MobileNet
    r'|stages\.\d+\.(blocks\.)?\d+'  # ConvNeXt, Swin
    r'|layers\.\d+(\.blocks\.\d+)?'  # ViT, Mixer
    r'|blocks\.\d+(\.\d+)?'  # ViT, Mixer, MobileNet of timm
    r'|s\d+\.b\d+'  # RegNet of timm
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        'models',
        nargs='+',
        metavar='CONFIG [CHECKPOINT]',
        help=f'files; checkpoints end in {", ".join(CHECKPOINTS)}',
    )
    parser.add_argument(
        '--before',
        metavar='CHECKPOINT',
        help='what the student of a distillation started from (default:\n'
        'random weights)',
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        '--stages',
        action='store_true',
        help='the ends of the four stages (default: of all blocks)',
    )
    which.add_argument(
        '--layers',
        type=re.compile,
        metavar='REGEX',
        help='the modules whose paths it is found in',
    )
    parser.add_argument('--num-batches', type=int, default=16)
    parser.add_argument('--batch-size', type=int, default=32, help='above 3')
    parser.add_argument(
        '--seed', type=int, default=0, help='of the images and of --before'
    )
    parser.add_argument('--device', default=get_device())
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/cka'),
        help='folder for cka.png and cka.csv (default: %(default)s)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='override settings of the first config: a.b=1 c="[1,2]"',
    )
    args = parser.parse_args()
    if args.batch_size <= 3:
        parser.error('--batch-size: the unbiased CKA needs at least 4 images')
    if args.num_batches < 1:
        parser.error('--num-batches must be positive')
    return args


# --------------------------------------------------------------------- models


@dataclass
class Subject:
    """A model whose layers are looked at.

    Attributes:
        name (str): In titles and in the table.
        model (nn.Module): It has the layers.
        preprocessor (nn.Module): Makes its batches.
        network (nn.Module): Is called with them. Defaults to the model.
        layers (list[str]): Paths, in the order in which they run.
        prefix (str): What the paths need not say in the picture.
    """

    name: str
    model: nn.Module
    preprocessor: nn.Module
    network: nn.Module | None = None
    layers: list[str] = field(default_factory=list)
    prefix: str = ''

    def __post_init__(self) -> None:
        self.network = (self.network or self.model).eval()
        self.prefix, _ = find_backbone(self.model)

    @torch.no_grad()
    def run(self, batch: dict, paths: list[str]) -> list[torch.Tensor]:
        """Run on a batch; get the Gram matrices ``(n, n)`` of its layers."""
        grams: dict[str, torch.Tensor] = {}

        def keep(path: str):
            def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
                feature = output[0] if isinstance(output, tuple) else output
                if not isinstance(feature, torch.Tensor):
                    raise ValueError(
                        f'{path} of {self.name} returns a '
                        f'{type(feature).__name__}: leave it out of --layers'
                    )
                if path in grams:
                    raise ValueError(
                        f'{path} of {self.name} runs more than once a forward,'
                        ' so its features are ambiguous: name the module '
                        'around it by --layers'
                    )
                grams[path] = linear_gram(feature)

            return hook

        modules = dict(self.model.named_modules())
        with ExitStack() as hooks:
            for path in paths:
                handle = modules[path].register_forward_hook(keep(path))
                hooks.callback(handle.remove)
            inputs = self.preprocessor(batch, False)['inputs']
            self.network(inputs, mode='tensor')
        self.layers = list(grams)
        return list(grams.values())


def pair_up(models: list[str]) -> list[tuple[str, str | None]]:
    """Pair configs with the checkpoints that follow them."""
    pairs: list[tuple[str, str | None]] = []
    for name in models:
        if not name.endswith(CHECKPOINTS):
            pairs.append((name, None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], name)
        else:
            raise ValueError(f'{name} follows no config that it could be of')
    return pairs


def is_distillation(cfg: Config) -> bool:
    return 'architecture' in cfg.model


def build_plain(cfg: Config, name: str) -> nn.Module:
    """Build the model of a config, or the student of a distillation."""
    plain = student_config(cfg)
    return build_model(plain.model, name, plain.get('data_preprocessor'))


def subject_of(
    name: str, cfg: Config, checkpoint: str | None, config: str
) -> Subject:
    if checkpoint is None and is_distillation(cfg):
        raise ValueError(
            f'{config} needs the checkpoint of its student: name it behind'
        )
    if checkpoint is None and not cfg.get('teacher_ckpt'):
        raise ValueError(
            f'{config} names no checkpoint (teacher_ckpt): name one behind it'
        )
    model = build_plain(cfg, name)
    if checkpoint is None:
        load_weights(model, cfg.teacher_ckpt)
    else:
        weights = student_state_dict(read_checkpoint(checkpoint))
        fit_weights(model, weights, checkpoint)
    return Subject(name, model, model.data_preprocessor)


def untrained_student(cfg: Config, args: argparse.Namespace) -> Subject:
    torch.manual_seed(args.seed)
    model = build_plain(cfg, 'student')
    model.init_weights()
    return Subject('student before', model, model.data_preprocessor)


def teachers_in(cfg: Config, preprocessor: nn.Module) -> list[Subject]:
    """Build the teachers of a distillation that run on the images."""
    subjects = []
    for name, source in teachers_of(cfg.model).items():
        if is_stored(source):
            print(f'{name} is left out: it is read from a store')
            continue
        live = LiveTeacher(**source)
        if live.inputs != DEFAULT_INPUT:
            print(f'{name} is left out: it reads {live.inputs!r}')
            continue
        if live.ckpt in (None, RANDOM):
            raise ValueError(
                f'{name} has no weights: --cfg-options '
                'model.teacher_ckpt=FILE, or ckpt in its dict'
            )
        teacher = live.build()
        teacher.adapt_to(preprocessor)
        teacher.insist_on_weights(preprocessor)
        subjects.append(Subject(name, teacher.model, preprocessor, teacher))
    return subjects


def build_subjects(args: argparse.Namespace) -> tuple[list[Subject], Config]:
    """Build the models, and tell the config that has the images."""
    pairs = pair_up(args.models)
    configs = [read_config(config) for config, _ in pairs]
    first = configs[0]
    first.merge_from_dict(args.cfg_options)
    init_default_scope(first.get('default_scope', 'mmpretrain'))

    if len(pairs) == 1 and is_distillation(first):
        config, checkpoint = pairs[0]
        after = subject_of('student after', first, checkpoint, config)
        if args.before:
            before = subject_of('student before', first, args.before, config)
        else:
            before = untrained_student(first, args)
        teachers = teachers_in(first, after.preprocessor)
        return [before, after, *teachers], first
    if args.before:
        raise ValueError('--before goes with one distillation config alone')
    names = [Path(config).stem for config, _ in pairs]
    if len(set(names)) < len(names):
        names = [f'{name} {index + 1}' for index, name in enumerate(names)]
    return [
        subject_of(name, cfg, checkpoint, config)
        for name, cfg, (config, checkpoint) in zip(
            names, configs, pairs, strict=True
        )
    ], first


def find_blocks(model: nn.Module) -> list[str]:
    """Paths of all blocks of a backbone."""
    prefix, backbone = find_backbone(model)
    found = [n for n, _ in backbone.named_modules() if BLOCKS.fullmatch(n)]
    if not found:
        raise ValueError(
            f'no blocks are known in a {type(backbone).__name__}: name them '
            'by --layers'
        )
    # What holds other blocks is a stage.
    return [
        prefix + path
        for path in found
        if not any(other.startswith(f'{path}.') for other in found)
    ]


def find_layers(subject: Subject, args: argparse.Namespace) -> list[str]:
    if args.stages:
        return [tap.source for tap in find_taps(subject.model)]
    if args.layers is None:
        return find_blocks(subject.model)
    paths = [path for path, _ in subject.model.named_modules() if path]
    found = [path for path in paths if args.layers.search(path)]
    if not found:
        raise ValueError(
            f'--layers {args.layers.pattern!r} is found in no module of '
            f'{subject.name}, which has {", ".join(paths[:12])}, ...'
        )
    return found


# ------------------------------------------------------------------- the data


def batches(cfg: Config, args: argparse.Namespace) -> Iterator[dict]:
    """Shuffled batches of the images that a config tests on."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if loader is None:
        raise ValueError(
            'the first config has neither test_dataloader nor val_dataloader'
        )
    loader = dict(
        loader,
        batch_size=args.batch_size,
        # Classes lie one after another on the disk.
        sampler=dict(type='DefaultSampler', shuffle=True, round_up=False),
        drop_last=True,
    )
    loader = Runner.build_dataloader(loader, seed=args.seed)
    if not len(loader):
        raise ValueError(
            f'there are {len(loader.dataset)} images, fewer than a batch of '
            f'{args.batch_size}: lower --batch-size'
        )
    yield from islice(loader, args.num_batches)


def compare(
    subjects: list[Subject], cfg: Config, args: argparse.Namespace
) -> MinibatchCKA:
    """Run all models on all batches."""
    cka = MinibatchCKA()
    paths = [find_layers(subject, args) for subject in subjects]
    for subject in subjects:
        subject.network.to(args.device)
        subject.preprocessor.to(args.device)
    for batch in batches(cfg, args):
        grams = []
        for subject, wanted in zip(subjects, paths, strict=True):
            grams += subject.run(batch, wanted)
            if not subject.layers:
                raise ValueError(
                    f'none of the layers of {subject.name} runs: '
                    f'{", ".join(wanted[:12])}'
                )
        cka.update(torch.stack(grams))
    return cka


# ------------------------------------------------------------------ reporting


@dataclass
class Panel:
    """The layers of one model (rows) against those of another."""

    rows: Subject
    columns: Subject
    cka: torch.Tensor

    @property
    def title(self) -> str:
        if self.rows is self.columns:
            return self.rows.name
        return f'{self.rows.name} x {self.columns.name}'


def make_panels(subjects: list[Subject], cka: torch.Tensor) -> list[Panel]:
    """Each model with itself, then two models, or students with teachers."""
    sizes = [len(subject.layers) for subject in subjects]
    parts = [rows.split(sizes, dim=1) for rows in cka.split(sizes)]
    count = len(subjects)
    # A student is there twice, before and after.
    first = min(2, count - 1)
    pairs = [(i, i) for i in range(count)]
    pairs += [(i, j) for j in range(first, count) for i in range(first)]
    return [Panel(subjects[i], subjects[j], parts[i][j]) for i, j in pairs]


def write_csv(panels: list[Panel], out: Path) -> None:
    with (
        replacing(out) as written,
        open(written, 'w', newline='') as file,
    ):
        writer = csv.writer(file)
        writer.writerow(['model_1', 'layer_1', 'model_2', 'layer_2', 'cka'])
        for panel in panels:
            rows, columns = panel.rows, panel.columns
            for i, row in enumerate(rows.layers):
                for j, column in enumerate(columns.layers):
                    value = f'{panel.cka[i, j]:.6f}'
                    writer.writerow(
                        [rows.name, row, columns.name, column, value]
                    )


def draw(panels: list[Panel], out: Path) -> None:
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = Figure(
        figsize=(4.2 * across + 0.8, 4.4 * down), layout='constrained'
    )
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.axis('off')
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.set_facecolor('lightgrey')  # layers that never vary
        axes.set_box_aspect(1)
        image = axes.imshow(
            panel.cka,
            vmin=0,
            vmax=1,
            cmap='magma',
            origin='lower',
            aspect='auto',
        )
        axes.set_title(panel.title)
        label_axis(axes.xaxis, panel.columns)
        label_axis(axes.yaxis, panel.rows)
        axes.tick_params(axis='x', rotation=90)
    figure.colorbar(image, ax=grid, shrink=0.8, label='CKA')
    # Long names of layers may stand out of the figure.
    with replacing(out) as written:
        figure.savefig(written, dpi=120, bbox_inches='tight')


def label_axis(axis, subject: Subject) -> None:
    # More than this cannot be read.
    step = -(-len(subject.layers) // 24)
    ticks = range(0, len(subject.layers), step)
    names = [subject.layers[i].removeprefix(subject.prefix) for i in ticks]
    axis.set_ticks(ticks, names, fontsize=7)
    axis.set_label_text(f'layer of {subject.name}')


def main() -> int:
    args = parse_args()
    # MMEngine tells of every weight how it is initialised.
    MMLogger.get_current_instance().setLevel('WARNING')
    subjects, cfg = build_subjects(args)
    cka = compare(subjects, cfg, args)
    similarity = cka.compute().cpu()
    panels = make_panels(subjects, similarity)
    for panel in panels:
        if panel.rows is panel.columns:
            for layer, itself in zip(
                panel.rows.layers, panel.cka.diagonal(), strict=True
            ):
                if itself.isnan():
                    print(
                        f'{layer} of {panel.rows.name} is the same for all '
                        'images: it has no similarity (nan, grey)'
                    )
        else:
            print(
                f'{panel.title}: CKA {panel.cka.nanmean():.3f} on average, '
                f'{panel.cka[-1, -1]:.3f} of the last layers'
            )
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(panels, args.out / 'cka.csv')
    draw(panels, args.out / 'cka.png')
    print(
        f'{args.out / "cka.png"}, {args.out / "cka.csv"}: from '
        f'{cka.num_batches} batches of {args.batch_size} images'
    )
    return 0


if __name__ == '__main__':
    with Command():
        sys.exit(main())
