"""Time a distillation step against MMRazor's, and what ScaleKD is made of.

The first table compares `mmcakd.CrossArchDistill` with MMRazor's
`SingleTeacherDistill` on the same pair, weights and batch: logit distillation
from Swin-T into ResNet-18; with the defaults, and with options that change no
result but by rounding. MMRazor's runs twice, as two contenders, and what these
differ by is what the machine adds: above 1.5 % the comparison is inconclusive.
Blocks of steps are interleaved, forth and back, and medians of blocks are
compared.

The second table times a ScaleKD step of the same pair and its parts alone.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope

import mmcakd  # noqa: F401
from mmcakd.models.distillers import Step
from mmcakd.models.recorders import StageOutputsRecorder
from mmcakd.models.teachers import build_model
from mmcakd.models.teachers.teacher import DEFAULT_INPUT
from mmcakd.registry import MODELS
from mmcakd.utils import Command

TOLERATED = 0.015

STUDENT = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='ResNet', depth=18),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=512),
)
LOGITS = {
    'mmcakd': dict(logits=dict(type='mmcakd.Logits')),
    'mmrazor': dict(logits=dict(type='ModuleOutputs', source='head.fc')),
}
KD_LOSS = {
    'mmcakd': dict(type='mmcakd.SoftTargetLoss', mode='kl'),
    'mmrazor': dict(type='mmrazor.KLDivergence'),
}
ARGUMENTS = {
    'mmcakd': ('student', 'teacher'),
    'mmrazor': ('preds_S', 'preds_T'),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--batch', type=int, default=16, help='images a step')
    parser.add_argument('--size', type=int, default=224, help='of the images')
    parser.add_argument('--steps', type=int, default=2, help='steps a block')
    parser.add_argument('--rounds', type=int, default=8, help='of blocks')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--only', choices=['comparison', 'parts'], help='one of the tables'
    )
    return parser.parse_args()


def teacher_cfg(size: int) -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='SwinTransformer', arch='tiny', img_size=size),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=768),
    )


def logit_distiller(whose: str) -> dict:
    student, teacher = ARGUMENTS[whose]
    return dict(
        student_recorders=LOGITS[whose],
        teacher_recorders=LOGITS[whose],
        distill_losses=dict(loss_kd=KD_LOSS[whose]),
        loss_forward_mappings=dict(
            loss_kd={
                student: dict(recorder='logits', from_student=True),
                teacher: dict(recorder='logits', from_student=False),
            }
        ),
    )


def stage(index: int, from_student: bool) -> dict:
    return dict(recorder='stages', from_student=from_student, data_idx=index)


def scalekd_distiller() -> dict:
    """ScaleKD with the heads that fit Swin-T's widths of 384 and 768."""
    distiller = logit_distiller('mmcakd')
    recorders = dict(stages=dict(type='mmcakd.StageOutputs'))
    for whose in ('student_recorders', 'teacher_recorders'):
        distiller[whose] = distiller[whose] | recorders
    views = ('original', 'frequency')
    connectors, target = {}, stage(3, False)
    for view in views:
        connectors[f's3_{view}'] = dict(
            type='mmcakd.CAPConnector',
            num_heads=12,
            inputs=dict(feature=stage(2, True)),
            shape_like=stage(2, False),
        )
        tail = dict(connector='tail', connector_idx=view)
        connectors[f's4_{view}'] = dict(
            type='mmcakd.CAPConnector',
            num_heads=24,
            inputs=dict(feature=stage(3, True), query=tail),
        )
        for name, output in (
            (f'loss_s3_{view}', tail),
            (f'loss_s4_{view}', dict(connector=f's4_{view}')),
        ):
            distiller['distill_losses'][name] = dict(
                type='mmcakd.DualViewLoss', view=view, loss_weight=0.08
            )
            distiller['loss_forward_mappings'][name] = dict(
                student=output, teacher=target
            )
    connectors['tail'] = dict(
        type='mmcakd.TeacherReplay',
        from_stage=3,
        inputs={view: dict(connector=f's3_{view}') for view in views},
    )
    return distiller | dict(connectors=connectors)


def optimizer(model: torch.nn.Module) -> OptimWrapper:
    trained = [p for p in model.parameters() if p.requires_grad]
    return OptimWrapper(torch.optim.SGD(trained, lr=1e-3, momentum=0.9))


class Contender:
    """A model, its optimizer and one batch in memory."""

    def __init__(
        self,
        cfg: dict,
        args: argparse.Namespace,
        precision: str | None = None,
    ) -> None:
        from mmpretrain.structures import DataSample

        torch.manual_seed(0)
        student = build_model(STUDENT, 'student')
        teacher = build_model(teacher_cfg(args.size), 'teacher')
        if precision is not None:
            teacher = dict(model=teacher, precision=precision)
        self.model = MODELS.build(
            cfg | dict(architecture=student, teacher=teacher)
        ).to(args.device)
        self.model.train()
        self.optimizer = optimizer(self.model)
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(
            args.batch, 3, args.size, args.size, generator=generator
        ).to(args.device)
        self.samples = [
            DataSample().set_gt_label(index).to(args.device)
            for index in range(args.batch)
        ]

    def step(self) -> None:
        losses = self.model(self.inputs, self.samples, mode='loss')
        self.optimizer.update_params(self.model.parse_losses(losses)[0])


def build_contender(
    whose: str,
    args: argparse.Namespace,
    precision: str | None = None,
    **options,
) -> Contender:
    algorithm, distiller = {
        'mmcakd': ('mmcakd.CrossArchDistill', 'mmcakd.CrossArchDistiller'),
        'mmrazor': ('mmrazor.SingleTeacherDistill', 'ConfigurableDistiller'),
    }[whose]
    cfg = dict(
        type=algorithm,
        distiller=dict(type=distiller, **logit_distiller(whose)),
        **options,
    )
    return Contender(cfg, args, precision)


def time_blocks(
    parts: dict[str, Callable[[], None]], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds a step, block by block, in the order A B C C B A."""
    synchronize = (
        torch.cuda.synchronize
        if torch.device(args.device).type == 'cuda'
        else lambda: None
    )
    times: dict[str, list[float]] = {name: [] for name in parts}
    for step in parts.values():
        step()
    for _ in range(args.rounds):
        for name in [*parts, *reversed(parts)]:
            synchronize()
            start = time.perf_counter()
            for _ in range(args.steps):
                parts[name]()
            synchronize()
            times[name].append((time.perf_counter() - start) / args.steps)
    return times


def comparison(args: argparse.Namespace) -> str:
    contenders = {
        'MMRazor': build_contender('mmrazor', args),
        'mmcakd': build_contender('mmcakd', args),
        'mmcakd, channels last': build_contender(
            'mmcakd', args, student_channels_last=True
        ),
        'mmcakd, channels last, teacher in bf16': build_contender(
            'mmcakd',
            args,
            student_channels_last=True,
            precision='bf16',
        ),
        'MMRazor again': build_contender('mmrazor', args),
    }
    times = time_blocks(
        {name: contender.step for name, contender in contenders.items()}, args
    )
    median = {name: statistics.median(t) for name, t in times.items()}
    control = abs(median['MMRazor again'] / median['MMRazor'] - 1)
    rows = [
        '| step | ms | images/s | speed-up |',
        '|---|---|---|---|',
    ]
    for name, seconds in median.items():
        rows.append(
            f'| {name} | {seconds * 1e3:.1f} | {args.batch / seconds:.2f} '
            f'| {median["MMRazor"] / seconds:.3f} |'
        )
    verdict = 'the comparison holds'
    if control > TOLERATED:
        verdict = 'inconclusive'
    rows += ['', f'Control: {control:.2%} ({verdict}).']
    return '\n'.join(rows)


class Parts:
    """A ScaleKD step, and each of its parts on its own."""

    def __init__(self, args: argparse.Namespace) -> None:
        cfg = dict(
            type='mmcakd.CrossArchDistill',
            distiller=dict(
                type='mmcakd.CrossArchDistiller', **scalekd_distiller()
            ),
            input_size=args.size,
        )
        self.whole = Contender(cfg, args)
        self.alone = Contender(cfg, args)
        model = self.alone.model
        self.student_optimizer = optimizer(model.student)
        self.connector_optimizer = optimizer(model.distiller)
        with self._step() as step:
            model.run_teachers(step)
            model.run_student(step)
            self.records = self._cut_records()

    def _step(self) -> Step:
        alone = self.alone
        inputs = {DEFAULT_INPUT: alone.inputs}
        return alone.model.distiller.step(inputs, alone.samples)

    def _recorders(self) -> list:
        return [
            recorder
            for manager in self.alone.model.distiller.recorders.values()
            for recorder in manager.recorders.values()
        ]

    def _cut_records(self) -> list:
        """Take what was recorded, cut off from the models behind it."""

        def cut(records):
            if isinstance(records, torch.Tensor):
                leaf = records.detach().clone()
                return leaf.requires_grad_(records.requires_grad)
            return [cut(record) for record in records]

        return [
            (
                cut(recorder._data_buffer),
                dict(recorder._grids)
                if isinstance(recorder, StageOutputsRecorder)
                else None,
            )
            for recorder in self._recorders()
        ]

    def teacher(self) -> None:
        self.alone.model.teacher(self.alone.inputs)

    def student(self) -> None:
        alone = self.alone
        losses = alone.model.student(alone.inputs, alone.samples, mode='loss')
        loss = alone.model.parse_losses(losses)[0]
        self.student_optimizer.update_params(loss)

    def connectors(self) -> None:
        for recorder, (records, grids) in zip(
            self._recorders(), self.records, strict=True
        ):
            recorder._data_buffer = records
            if grids is not None:
                recorder._grids = grids
        model = self.alone.model
        with self._step() as step:
            losses = model.distiller.compute_distill_losses(step)
        self.connector_optimizer.update_params(model.parse_losses(losses)[0])


def parts(args: argparse.Namespace) -> str:
    made = Parts(args)
    times = time_blocks(
        {
            'whole step': made.whole.step,
            'teacher': made.teacher,
            'student': made.student,
            'connectors and losses': made.connectors,
        },
        args,
    )
    median = {name: statistics.median(t) for name, t in times.items()}
    whole = median.pop('whole step')
    median['rest'] = whole - sum(median.values())
    rows = ['| part of a ScaleKD step | ms | share |', '|---|---|---|']
    for name, seconds in (median | {'whole step': whole}).items():
        rows.append(
            f'| {name} | {seconds * 1e3:.1f} | {seconds / whole:.1%} |'
        )
    return '\n'.join(rows)


def describe(args: argparse.Namespace) -> str:
    device = platform.processor() or platform.machine()
    if torch.device(args.device).type == 'cuda':
        device = torch.cuda.get_device_name(args.device)
    return (
        f'Swin-T -> ResNet-18, {args.size} px, batch {args.batch}, float32, '
        f'{device}, {args.threads} threads, torch {torch.__version__}, '
        f'medians of {2 * args.rounds} blocks of {args.steps} steps'
    )


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    print(describe(args))
    for name, make in (('comparison', comparison), ('parts', parts)):
        if args.only in (None, name):
            with DefaultScope.overwrite_default_scope('mmrazor'):
                print('', make(args), sep='\n')


if __name__ == '__main__':
    with Command():
        main()
