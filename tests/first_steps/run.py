"""The first training step of every config, to compare two versions by.

    python tests/first_steps/run.py --out steps.json
    python tests/first_steps/run.py --compare OTHER_CHECKOUT
    python tests/first_steps/run.py --compare one.json other.json

See the README beside it.
"""

import argparse
import gc
import hashlib
import json
import logging
import os
import pkgutil
import random
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

if __name__ == '__main__':
    # A process that is started for another checkout reads that one's package.
    _root = Path(os.environ.get('FIRST_STEPS_ROOT', Path(__file__).parents[2]))
    _root = _root.resolve()
    sys.path.insert(0, str(_root))

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)
import numpy as np
import torch
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from torch import nn

#: The folders under configs/ whose files are runs of classifiers.
FOLDERS = (
    'cakd',
    'cifar_teachers',
    'ofakd',
    'quickstart',
    'scalekd',
    'shapes',
    'tas',
)
#: What a file of configs/baselines is run with, which has a distiller alone.
BASELINE_PAIRS = ('vit-b_resnet18_in1k', 'resnet50_deit-t_in1k')
#: ... whose mixed images this one refuses.
UNMIXED = ('crd',)

PIXELS = 64
#: The highest level of an FPN has more than one place.
FPN_PIXELS = 256
#: A multiple of the heads of all projectors onto a plain ViT.
WIDTH = 24
VIT = dict(
    embed_dims=WIDTH, num_layers=12, num_heads=3, feedforward_channels=48
)
#: What makes a backbone narrow, by its type. Widths of Swin are such that the
#: heads of all projectors divide them.
NARROW = dict(
    ResNet=dict(stem_channels=8, base_channels=8),
    ResNetV1d=dict(stem_channels=8, base_channels=8),
    MobileNetV2=dict(widen_factor=0.25),
    ConvNeXt=dict(arch=dict(depths=[1] * 4, channels=[8, 16, 32, 64])),
    SwinTransformer=dict(
        arch=dict(embed_dims=12, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8])
    ),
    VisionTransformer=dict(arch=VIT),
    DeiT3=dict(arch=VIT),
    BEiTViT=dict(arch=VIT),
    MlpMixer=dict(
        arch=dict(
            embed_dims=WIDTH,
            num_layers=4,
            tokens_mlp_dims=16,
            channels_mlp_dims=48,
        )
    ),
    resmlp_12_224=dict(img_size=PIXELS),
    mobilenetv1_100=dict(),
    # There is none that is narrower.
    EfficientNet=dict(),
)
WIDTHS = dict(
    ConvNeXt=64,
    SwinTransformer=96,
    VisionTransformer=WIDTH,
    DeiT3=WIDTH,
    BEiTViT=WIDTH,
    MlpMixer=WIDTH,
    resmlp_12_224=WIDTH,
    mobilenetv1_100=128,
    EfficientNet=1280,
    MobileNetV2=1280,
)
#: Those that ask for the size of the images.
SIZED = (
    'SwinTransformer',
    'VisionTransformer',
    'DeiT3',
    'BEiTViT',
    'MlpMixer',
)


#: Functions of timm, and what makes their networks narrow: the names above
#: take no widths.
NARROW_TIMM = {
    'timm.models.mlp_mixer._create_mixer': dict(embed_dim=WIDTH),
    'timm.models.efficientnet._gen_mobilenet_v1': dict(
        channel_multiplier=0.125
    ),
}

#: What makes detectors and segmentors narrow, by their config.
RETINA = {
    'neck.out_channels': 16,
    'bbox_head.in_channels': 16,
    'bbox_head.feat_channels': 16,
    'bbox_head.stacked_convs': 1,
}
FCN = {'decode_head.channels': 8, 'auxiliary_head.channels': 8}
SWIN = {
    'backbone.embed_dims': 8,
    'backbone.depths': [2, 2, 2, 2],
    'backbone.num_heads': [1, 2, 4, 8],
    'backbone.init_cfg': None,
}
RESNET = {
    'backbone.depth': 18,
    'backbone.stem_channels': 8,
    'backbone.base_channels': 8,
    'backbone.init_cfg': None,
}
DOWNSTREAM = {
    'downstream/distill/retinanet_swin-t_resnet50_fpn_1x_coco.py': dict(
        architecture=RESNET | RETINA | {'neck.in_channels': [8, 16, 32, 64]},
        teacher=SWIN | RETINA | {'neck.in_channels': [16, 32, 64]},
    ),
    'downstream/distill/fcn_swin-t_resnet50_ade20k_80k.py': dict(
        architecture=RESNET
        | FCN
        | {
            'pretrained': None,
            'decode_head.in_channels': 64,
            'auxiliary_head.in_channels': 32,
        },
        teacher=SWIN
        | FCN
        | {
            'decode_head.in_channels': [8, 16, 32, 64],
            'auxiliary_head.in_channels': 32,
        },
    ),
}

#: MMEngine reads the index of a whole model zoo for each ``mmpretrain::``.
read_index = cache(config_utils.load)


# --------------------------------------------------------------------- configs


def list_configs(root: Path) -> list[str]:
    """Name every config that is a run, and the baselines with their pairs."""
    configs = root / 'configs'
    runs = [
        path.relative_to(configs).as_posix()
        for folder in FOLDERS
        for path in sorted((configs / folder).rglob('*.py'))
        if '_base_' not in path.parts
    ]
    methods = sorted((configs / 'baselines').glob('*.py'))
    return runs + [
        f'baselines/{method.name} {pair}'
        for method in methods
        for pair in BASELINE_PAIRS
    ]


def downstream() -> list[str]:
    """Name the configs of detectors and segmentors, where those run."""
    if find_spec('mmcv._ext') and find_spec('mmdet') and find_spec('mmseg'):
        return list(DOWNSTREAM)
    print(
        'without detectors and segmentors: MMDetection, MMSegmentation or the '
        'compiled operators of mmcv are not installed'
    )
    return []


def read_config(root: Path, name: str) -> Config:
    """Read a config with narrow networks, and with no weights to load."""
    if name in DOWNSTREAM:
        return read_downstream(root, name)
    path, _, pair = name.partition(' ')
    cfg = Config.fromfile(root / 'configs' / path)
    if pair:
        method = cfg
        cfg = Config.fromfile(root / f'configs/_base_/pairs/{pair}.py')
        cfg.model.distiller = method.distiller
        if Path(path).stem in UNMIXED:
            cfg.model.architecture.train_cfg = None
    model = cfg.model
    distills = 'architecture' in model
    if distills:
        if isinstance(model.teacher, str):
            model.teacher = read_teacher(model.teacher)
        # The weights are filled in here.
        model.pop('teacher_ckpt', None)
    # Networks for the rendered images are narrow as they are.
    if cfg.model.get('input_size', PIXELS) != PIXELS or 'cifar' in name:
        parts = [model.architecture, model.teacher] if distills else [model]
        for part in parts:
            make_narrow(part)
    if distills:
        model.input_size = PIXELS
    if model.get('distiller', {}).get('connectors', {}).get('pooled'):
        narrow_official_code(cfg)
    if 'discriminator_interval' in model:
        # The first step is one of theirs.
        model.discriminator_interval = 1
    return cfg


def read_downstream(root: Path, name: str) -> Config:
    """Read a detector or a segmentor that learns from another."""
    cfg = Config.fromfile(root / 'configs' / name)
    cfg.model.pop('teacher_ckpt')
    cfg.model.teacher = get_config(cfg.model.teacher).model
    for part, widths in DOWNSTREAM[name].items():
        options = {f'model.{part}.{key}': v for key, v in widths.items()}
        cfg.merge_from_dict(options)
    for part in (cfg.model.architecture, cfg.model.teacher):
        if 'size' in part.data_preprocessor:
            part.data_preprocessor.size = (FPN_PIXELS, FPN_PIXELS)
    return cfg


def read_teacher(name: str) -> dict:
    """Read a teacher's config with its own normalisation."""
    cfg = get_config(name)
    teacher = cfg.model
    teacher.setdefault('data_preprocessor', cfg.data_preprocessor)
    teacher._scope_ = 'mmpretrain'
    return teacher


def make_narrow(model: dict) -> None:
    """Make a classifier narrow, and fit for small images."""
    backbone = model['backbone']
    backbone.pop('init_cfg', None)
    kind = backbone.get('model_name', backbone['type'])
    for key, value in NARROW[kind].items():
        backbone[key] = value
    if kind in SIZED:
        backbone['img_size'] = PIXELS
    if kind == 'SwinTransformer':
        backbone['pad_small_map'] = True
    width = WIDTHS.get(kind)
    if width is None:
        width = 64 * (1 if backbone['depth'] < 50 else 4)
    model['head']['in_channels'] = width


@contextmanager
def narrow_timm() -> Iterator[None]:
    """Let timm make narrow networks."""
    with ExitStack() as stack:
        for path, widths in NARROW_TIMM.items():
            make = pkgutil.resolve_name(path)
            stack.enter_context(
                patch(
                    path,
                    lambda variant, *_, make=make, widths=widths, **kwargs: (
                        make(variant, **kwargs | widths)
                    ),
                )
            )
        yield


def narrow_official_code(cfg: Config) -> None:
    """Its widths are those of a ViT-B; PatchGAN wants a larger grid."""
    model = cfg.model
    model.input_size = model.teacher.backbone.img_size = 96
    model.distiller.connectors.pooled.embed_dims = WIDTH
    model.distiller.connectors.pca.update(num_heads=3, head_dims=8)


# --------------------------------------------------------------------- weights


def fill(module: nn.Module) -> None:
    """Give every parameter values that its name and its shape decide.

    They are the same on every processor, in whatever order the parts of a
    model are made. What is constant in a new network, such as the scale of a
    norm, stays near to its constant.
    """
    for name, parameter in module.named_parameters():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        noise = torch.from_numpy(rng.uniform(-1, 1, tuple(parameter.shape)))
        value = parameter.detach()
        is_constant = bool((value == value.flatten()[:1]).all())
        if value.ndim < 2 and not name.endswith('bias') and is_constant:
            noise = 0.1 * noise + value
        else:
            fan_in = value[0].numel() if value.ndim > 1 else 100
            noise *= (3 / max(fan_in, 1)) ** 0.5
        value.copy_(noise)
    for name, buffer in module.named_buffers():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        noise = torch.from_numpy(rng.uniform(0, 1, tuple(buffer.shape)))
        if name.endswith('running_mean'):
            buffer.copy_(0.2 * noise - 0.1)
        elif name.endswith('running_var'):
            buffer.copy_(0.5 + noise)
        elif name.endswith('_memory'):
            buffer.copy_((noise - 0.5) * (12 / buffer.shape[1]) ** 0.5)


def digest(tensor: torch.Tensor) -> str:
    """The first 16 digits of the hash of a tensor's bytes and shape."""
    array = tensor.detach().cpu().contiguous().numpy()
    head = f'{array.dtype} {array.shape}'.encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()[:16]


def digest_all(tensors: dict[str, torch.Tensor]) -> str:
    """One digest for tensors with names."""
    lines = [f'{name} {digest(value)}' for name, value in tensors.items()]
    return hashlib.sha256('\n'.join(sorted(lines)).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------ step


@contextmanager
def deterministic(dtype: torch.dtype, root: Path) -> Iterator[None]:
    """Compute in one thread and one precision, from a checkout's folder."""
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    folder = os.getcwd()
    os.chdir(root)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    try:
        with (
            DefaultScope.overwrite_default_scope('mmpretrain'),
            patch.object(config_utils, 'load', read_index),
            narrow_timm(),
        ):
            yield
    finally:
        torch.set_default_dtype(default)
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
        os.chdir(folder)


def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def build(cfg: Config) -> nn.Module:
    """Build a model, with the weights that a run would draw."""
    seed()
    model_cfg = dict(cfg.model)
    if cfg.default_scope == 'mmpretrain':
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    if 'teacher' in model_cfg:
        teacher = dict(model_cfg['teacher'])
        if cfg.default_scope == 'mmpretrain':
            teacher.setdefault('data_preprocessor', cfg.data_preprocessor)
        # Its weights come before the distillation's are drawn.
        model_cfg['teacher'] = MODELS.build(teacher)
        fill(model_cfg['teacher'])
    model = MODELS.build(model_cfg)
    model.init_weights()
    return model


def make_batch(size: int, pixels: int) -> dict:
    """Images of noise, with labels and their places in the training set."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 3, pixels, pixels), dtype=np.uint8)
    samples = [
        DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i % 5)
        for i in range(size)
    ]
    return dict(inputs=list(torch.from_numpy(images)), data_samples=samples)


def make_downstream_batch(scope: str) -> dict:
    """Two images of noise, with a box or a map of classes each."""
    data = make_batch(2, FPN_PIXELS)
    shape = (FPN_PIXELS, FPN_PIXELS)
    meta = dict(img_shape=shape, ori_shape=shape, batch_input_shape=shape)
    data['data_samples'] = []
    for index in range(2):
        if scope == 'mmdet':
            from mmdet.structures import DetDataSample

            sample = DetDataSample(metainfo=meta)
            sample.gt_instances = InstanceData(
                bboxes=torch.tensor([[4.0, 8.0, 40.0, 60.0]]) + index,
                labels=torch.tensor([index]),
            )
        else:
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=meta)
            classes = (
                torch.arange(FPN_PIXELS * FPN_PIXELS).view(1, *shape) % 150
            )
            sample.gt_sem_seg = PixelData(data=classes)
        data['data_samples'].append(sample)
    return data


def run_step(cfg: Config) -> dict:
    """Take the first step of a config, by its own optimizer.

    Returns:
        dict: ``weights``, the digest of the weights that it starts from
        before they are filled in; ``losses`` by name; ``gradients``, the
        digest and the norm of each parameter's; ``norms``, those of the
        gradients of student and distiller; ``buffers``, the digest of what
        the step leaves in them.
    """
    model = build(cfg)
    start = digest_all(dict(model.named_parameters()))
    for part in model.modules():
        if hasattr(part, 'prepare_from_labels'):
            part.prepare_from_labels(torch.arange(40) % 5)
    fill(model)
    model.train()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Called once a backward pass, before the optimizer's step. A
            # discriminator has one of its own.
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: gradients.update(
                    {name: p.grad.detach().clone()}
                )
            )
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    pixels = cfg.model.get('input_size', PIXELS)
    batch = (
        make_batch(4, pixels)
        if cfg.default_scope == 'mmpretrain'
        else make_downstream_batch(cfg.default_scope)
    )
    seed()
    log = model.train_step(batch, optim_wrapper)
    squares = dict(student=0.0, distiller=0.0)
    for name, gradient in gradients.items():
        part = 'distiller' if name.startswith('distiller.') else 'student'
        squares[part] += gradient.double().square().sum().item()
    return dict(
        weights=start,
        losses={name: value.item() for name, value in log.items()},
        norms={part: square**0.5 for part, square in squares.items()},
        gradients={
            name: [digest(gradient), gradient.double().norm().item()]
            for name, gradient in sorted(gradients.items())
        },
        buffers=digest_all(dict(model.named_buffers())),
    )


def run_config(root: Path, name: str, dtype: torch.dtype) -> dict:
    """Take the first step of the config of this name."""
    with deterministic(dtype, root):
        cfg = read_config(root, name)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            return run_step(cfg)


def run_all(root: Path, names: list[str], dtype: torch.dtype) -> dict:
    """Take the first step of each config; say why where one does not."""
    steps = {}
    for name in names:
        try:
            steps[name] = run_config(root, name, dtype)
        except Exception as error:  # told in the comparison
            steps[name] = dict(error=f'{type(error).__name__}: {error}')
        print(f'{name}: {steps[name].get("error", "done")}', flush=True)
        gc.collect()
    return steps


# ------------------------------------------------------------------ comparison


def compare(one: dict, other: dict) -> list[str]:
    """Say, a line each, what differs between two runs of the script.

    Returns:
        list[str]: Nothing if they are the same, bit by bit.
    """
    lines = []
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            lines.append(f'{name}: only in one of them')
            continue
        a, b = one[name], other[name]
        if 'error' in a or 'error' in b:
            if a != b:
                lines.append(
                    f'{name}: {a.get("error", "runs")} / '
                    f'{b.get("error", "runs")}'
                )
            continue
        if a['weights'] != b['weights']:
            lines.append(
                f'{name}: initial weights differ (names, shapes, or the '
                'order in which they are drawn)'
            )
        for what in ('losses', 'gradients'):
            for key in sorted(a[what].keys() | b[what].keys()):
                x, y = a[what].get(key), b[what].get(key)
                if x != y:
                    lines.append(f'{name}: {what} differ: {key}: {x} / {y}')
        if a['buffers'] != b['buffers']:
            lines.append(f'{name}: buffers differ after the step')
    return lines


def run_checkout(root: Path, options: argparse.Namespace) -> dict:
    """Run this file with the package and the configs of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'steps.json')
        command = [sys.executable, '-W', 'ignore', __file__, '--out', out]
        command += ['--dtype', options.dtype, *options.only]
        environment = dict(
            os.environ, FIRST_STEPS_ROOT=str(root), PYTHONPATH=str(root)
        )
        subprocess.run(command, env=environment, cwd=root, check=True)
        return json.loads(out.read_text())


def read_steps(source: str, options: argparse.Namespace) -> dict:
    path = Path(source).resolve()
    if path.is_dir():
        return run_checkout(path, options)
    return json.loads(path.read_text())


def shorten(steps: dict) -> dict:
    """Keep what does not depend on the processor, with twelve digits."""

    def around(values: dict[str, float]) -> dict[str, float]:
        return {name: float(f'{v:.12g}') for name, v in values.items()}

    return {
        name: dict(losses=around(step['losses']), norms=around(step['norms']))
        for name, step in steps.items()
    }


def dump(steps: dict) -> str:
    """JSON with a line for each config."""
    lines = [
        f'{json.dumps(name)}: {json.dumps(step)}'
        for name, step in steps.items()
    ]
    return '{\n' + ',\n'.join(lines) + '\n}\n'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument(
        'only', nargs='*', help='parts of names of configs; all by default'
    )
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument(
        '--compare',
        nargs='+',
        metavar='CHECKOUT_OR_JSON',
        help='another checkout to compare this one with; or two of them',
    )
    parser.add_argument(
        '--dtype', choices=('float32', 'float64'), default='float32'
    )
    parser.add_argument(
        '--short',
        action='store_true',
        help='write losses and norms alone, as tests/data/first_steps.json',
    )
    return parser.parse_args(argv)


def main(
    argv: list[str] | None = None, say: Callable[[str], None] = print
) -> int:
    options = parse_args(argv)
    package = Path(mmcakd.__file__).parents[1]
    assert package == _root, f'mmcakd is that of {package}, not of {_root}'
    if options.compare:
        sources = options.compare
        if len(sources) == 1:
            sources = [*sources, str(Path(__file__).parents[2])]
        one, other = (read_steps(source, options) for source in sources)
        lines = compare(one, other)
        errors = {name for name, step in one.items() if 'error' in step}
        for line in lines:
            say(line)
        say(
            f'{len(one)} configs, of which {len(errors)} do not run: '
            f'{len(lines)} differences'
        )
        return bool(lines or errors)
    names = [
        name
        for name in list_configs(_root) + (not options.short) * downstream()
        if not options.only or any(part in name for part in options.only)
    ]
    steps = run_all(_root, names, getattr(torch, options.dtype))
    if options.short:
        steps = shorten(steps)
    if options.out:
        options.out.write_text(dump(steps))
    return any('error' in step for step in steps.values())


if __name__ == '__main__':
    sys.exit(main())
