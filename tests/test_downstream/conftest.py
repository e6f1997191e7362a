"""Exported students, and small sets in the layouts of COCO and ADE20K."""

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)

import json
import math
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image, ImageDraw
from torch import nn

CONFIGS = Path(__file__).parents[2] / 'configs'
#: The config of the student that each backbone is exported from.
STUDENTS = {
    'resnet50': 'resnet50',
    'swin-t': 'swin-t',
    'convnext-t': 'convnext-t',
    'mobilenetv2': 'mobilenetv2',
    'vit-b': 'vit-b16',
    'resnetv1d50': 'resnetv1d50_bce',
}
SIZE = (120, 90)  # of the images, width and height
#: Keys of a config under which sizes of images are found.
SIZES = ('scale', 'scales', 'crop_size', 'size')


@pytest.fixture(scope='session', autouse=True)
def operators() -> None:
    """Skip all tests here where MMDetection and MMSegmentation do not run."""
    pytest.importorskip(
        'mmcv._ext', reason='mmcv is installed without its compiled operators'
    )
    pytest.importorskip('mmdet', reason='MMDetection is not installed')
    pytest.importorskip('mmseg', reason='MMSegmentation is not installed')


# -------------------------------------------------------------------- students


@pytest.fixture(scope='session')
def exported(operators, tmp_path_factory) -> Iterator[Callable[[str], Path]]:
    """Export a student of full size, with weights that no two share."""
    from mmpretrain.registry import MODELS

    from mmcakd.utils import export_student

    folders = []

    @cache
    def export(name: str) -> Path:
        student = Config.fromfile(
            CONFIGS / '_base_' / 'students' / f'{STUDENTS[name]}.py'
        ).student
        torch.manual_seed(0)
        model = MODELS.build(student)
        model.init_weights()
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                noise = 0.01 * torch.randn_like(value)
                value += noise.abs() if 'running_var' in key else noise
        run = Config(
            dict(
                model=dict(
                    type='mmcakd.CrossArchDistill', architecture=student
                )
            )
        )
        folder = tmp_path_factory.mktemp(name)
        folders.append(folder)
        weights = {
            f'architecture.{k}': v for k, v in model.state_dict().items()
        }
        torch.save(
            dict(meta=dict(cfg=run.pretty_text), state_dict=weights),
            folder / 'iter_2.pth',
        )
        return export_student(folder / 'iter_2.pth', folder / 'student.pth')

    yield export
    for folder in folders:  # pytest would keep these hundreds of MB
        shutil.rmtree(folder)


@pytest.fixture(scope='session')
def read_backbone(exported) -> Callable[[str], dict]:
    """Read the weights of the backbone of an exported student."""

    def read(name: str) -> dict[str, torch.Tensor]:
        weights = torch.load(exported(name))['state_dict']
        return {
            key.removeprefix('backbone.'): value
            for key, value in weights.items()
            if key.startswith('backbone.')
        }

    return read


@pytest.fixture(scope='session')
def build_student(exported) -> Callable[[str], nn.Module]:
    """Load an exported student as MMPretrain does."""
    from mmpretrain import get_model

    def build(name: str) -> nn.Module:
        checkpoint = exported(name)
        config = str(checkpoint.with_suffix('.py'))
        return get_model(config, pretrained=str(checkpoint)).eval()

    return build


# ------------------------------------------------------------------------ data


def draw(rng) -> tuple[Image.Image, list[list[tuple[int, int]]]]:
    """Draw three quadrangles on noise, and give their corners."""
    width, height = SIZE
    noise = rng.integers(0, 100, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    shapes = []
    for number in range(3):
        x, y = 5 + 38 * number, int(rng.integers(5, 30))
        w, h = int(rng.integers(20, 34)), int(rng.integers(25, 50))
        corners = [(x, y), (x + w, y + 4), (x + w - 4, y + h), (x + 3, y + h)]
        shapes.append(corners)
        colour = tuple(int(c) for c in rng.integers(120, 256, 3))
        ImageDraw.Draw(image).polygon(corners, fill=colour)
    return image, shapes


@pytest.fixture(scope='session')
def coco_root(operators, tmp_path_factory) -> Path:
    """COCO with four images to train on and two to evaluate on."""
    from mmdet.datasets import CocoDataset

    root = tmp_path_factory.mktemp('coco')
    rng = np.random.default_rng(0)
    # All of them: an untrained detector finds any.
    categories = [
        dict(id=index + 1, name=name)
        for index, name in enumerate(CocoDataset.METAINFO['classes'])
    ]
    (root / 'annotations').mkdir()
    for split, count in (('train2017', 4), ('val2017', 2)):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            image, shapes = draw(rng)
            name = f'{index:012}.jpg'
            image.save(root / split / name)
            width, height = SIZE
            images.append(
                dict(id=index, file_name=name, width=width, height=height)
            )
            for category, corners in zip((1, 3, 17), shapes, strict=True):
                x, y = np.array(corners).T
                box = [x.min(), y.min(), np.ptp(x), np.ptp(y)]
                area = 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=index,
                        category_id=category,
                        bbox=[float(side) for side in box],
                        area=float(area),
                        segmentation=[
                            [float(c) for xy in corners for c in xy]
                        ],
                        iscrowd=0,
                    )
                )
        (root / 'annotations' / f'instances_{split}.json').write_text(
            json.dumps(
                dict(
                    images=images,
                    annotations=annotations,
                    categories=categories,
                )
            )
        )
    return root


@pytest.fixture(scope='session')
def ade20k_root(tmp_path_factory) -> Path:
    """ADE20K with four images to train on and two to evaluate on."""
    root = tmp_path_factory.mktemp('ade20k')
    rng = np.random.default_rng(0)
    for split, count in (('training', 4), ('validation', 2)):
        for folder in ('images', 'annotations'):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            image, shapes = draw(rng)
            image.save(root / 'images' / split / f'{index}.jpg')
            # A wall, and three things in front of it; 0 is unlabelled.
            mask = Image.new('L', SIZE, 1)
            for value, corners in zip((0, 13, 150), shapes, strict=True):
                ImageDraw.Draw(mask).polygon(corners, fill=value)
            mask.save(root / 'annotations' / split / f'{index}.png')
    return root


# ------------------------------------------------------------------------ runs


class Watch(Hook):
    """Note what a run starts from, what it does, and what comes out."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.losses = []
        self.metrics = {}
        self.reached = set()  # the parameters that got a gradient

    def before_train(self, runner) -> None:
        self.model = runner.model
        self.groups = runner.optim_wrapper.param_groups
        self.before = {
            key: value.clone()
            for key, value in self.model.backbone.state_dict().items()
        }
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(
                    lambda grad, name=name: self.reached.add(name)
                )

    def after_train_iter(self, runner, batch_idx, data_batch, outputs) -> None:
        self.losses.append({k: v.item() for k, v in outputs.items()})

    def after_val_epoch(self, runner, metrics) -> None:
        self.metrics = metrics

    @property
    def without_gradient(self) -> set[str]:
        trained = {
            n for n, p in self.model.named_parameters() if p.requires_grad
        }
        return trained - self.reached

    @property
    def changed(self) -> set[str]:
        """Parameters of the backbone that are not what they were."""
        return {
            name
            for name, parameter in self.model.backbone.named_parameters()
            if not torch.equal(parameter, self.before[name])
        }

    @property
    def frozen(self) -> set[str]:
        parameters = self.model.backbone.named_parameters()
        return {name for name, p in parameters if not p.requires_grad}

    @property
    def decays_of_norms(self) -> set[float]:
        """The decays that LayerNorms of the backbone are trained with."""
        norms = {
            id(parameter)
            for module in self.model.backbone.modules()
            if isinstance(module, nn.LayerNorm)
            for parameter in module.parameters()
        }
        return {
            group['weight_decay']
            for group in self.groups
            if any(id(p) in norms for p in group['params'])
        }


@pytest.fixture
def run(tmp_path) -> Callable[[Config], Watch]:
    """Train and evaluate by MMEngine's Runner; give what was watched."""

    def train(cfg: Config) -> Watch:
        cfg.work_dir = str(tmp_path)
        cfg.default_hooks.checkpoint = None
        cfg.optim_wrapper.type = 'OptimWrapper'  # AMP needs a GPU
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.update(num_workers=0, persistent_workers=False)
        for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
            cfg.pop(key)
        runner = Runner.from_cfg(cfg)
        watch = Watch()
        runner.register_hook(watch)
        runner.train()
        return watch

    return train


# --------------------------------------------------------------------- configs


@pytest.fixture(scope='session')
def read_config() -> Callable[..., Config]:
    """Read a downstream config."""

    @cache
    def parse(folder: str, name: str) -> Config:
        return Config.fromfile(CONFIGS / 'downstream' / folder / f'{name}.py')

    return lambda folder, name: deepcopy(parse(folder, name))


@pytest.fixture(scope='session')
def read_recipe() -> Callable[[str], Config]:
    """Read a config of MMDetection or MMSegmentation, as ours do."""
    return lambda name: Config.fromstring(f"_base_ = '{name}.py'", '.py')


@pytest.fixture(scope='session')
def build_backbone(operators) -> Callable[[Config], nn.Module]:
    """Build the backbone of a config, without its weights."""

    def build(cfg: Config) -> nn.Module:
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            return MODELS.build(cfg.model.backbone)

    return build


@pytest.fixture(scope='session')
def shrink() -> Callable:
    """Divide the sizes of images in a part of a config."""

    def divide(cfg, divisor: int, is_size: bool = False):
        if isinstance(cfg, dict):
            return {
                key: divide(value, divisor, key in SIZES)
                for key, value in cfg.items()
            }
        if isinstance(cfg, (list, tuple)):
            return type(cfg)(divide(item, divisor, is_size) for item in cfg)
        return cfg // divisor if is_size and isinstance(cfg, int) else cfg

    return divide


@pytest.fixture(scope='session')
def differences() -> Callable[[Config, Config], set[str]]:
    """Name what differs between two configs, but for the backbone."""
    ours = ('model.backbone.', 'backbone_weights', 'custom_imports')

    def compare(one: dict, other: dict, prefix: str = '') -> set[str]:
        found = set()
        for key in one.keys() | other.keys():
            a, b = one.get(key), other.get(key)
            if isinstance(a, dict) and isinstance(b, dict):
                found |= compare(a, b, f'{prefix}{key}.')
            elif a != b and key != '_scope_':
                found.add(prefix + key)
        return {name for name in found if not name.startswith(ours)}

    return lambda one, other: compare(one.to_dict(), other.to_dict())


@pytest.fixture(scope='session')
def check_weights(read_backbone) -> Callable:
    """Compare a backbone with the student that its config names."""

    def check(weights: dict, student: str, new: list, unused: list) -> None:
        expected = read_backbone(student)
        missing = weights.keys() - expected.keys()
        unexpected = expected.keys() - weights.keys()
        assert missing == {k for k in weights if k.startswith(tuple(new))}
        assert unexpected == {
            k for k in expected if k.startswith(tuple(unused))
        }
        for prefix in new:
            assert any(key.startswith(prefix) for key in missing)
        for prefix in unused:
            assert any(key.startswith(prefix) for key in unexpected)
        for key in weights.keys() & expected.keys():
            found, value = weights[key], expected[key]
            if key == 'pos_embed' and found.shape != value.shape:
                before, after = (math.isqrt(v.size(1)) for v in (value, found))
                value = torch.nn.functional.interpolate(
                    value.unflatten(1, (before, before)).permute(0, 3, 1, 2),
                    size=(after, after),
                    mode='bicubic',
                )
                value = value.permute(0, 2, 3, 1).flatten(1, 2)
            assert torch.equal(found, value), key

    return check


@pytest.fixture(scope='session')
def check_normalisation() -> Callable[[Config], None]:
    """Compare how images are seen with what students for ImageNet see."""

    def check(cfg: Config) -> None:
        found = set()
        for path in (CONFIGS / '_base_' / 'datasets').glob('imagenet_*.py'):
            seen = Config.fromfile(path).data_preprocessor
            found.add((tuple(seen.mean), tuple(seen.std), seen.to_rgb))
        seen = cfg.model.data_preprocessor
        assert {(tuple(seen.mean), tuple(seen.std), seen.bgr_to_rgb)} == found

    return check
