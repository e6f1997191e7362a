"""Data sets of two images, and what a config does with them."""

import copy
import hashlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from PIL import Image
from torch import nn

from mmcakd.engine import RecipeCheckHook
from mmcakd.models.teachers import build_model
from mmcakd.models.teachers.build import read_model_cfg
from mmcakd.registry import MODELS

#: Of an image that every family can take.
PIXELS = 64


@pytest.fixture(scope='session')
def imagenet_root(tmp_path_factory) -> Path:
    """ImageNet with an image of each of two classes, to train on."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    lines = []
    for label, wnid in enumerate(('n01440764', 'n01443537')):
        folder = root / 'train' / wnid
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{wnid}_0.JPEG')
        lines.append(f'{wnid}/{wnid}_0.JPEG {label}')
    (root / 'meta').mkdir()
    (root / 'meta' / 'train.txt').write_text('\n'.join(lines))
    return root


@pytest.fixture(scope='session')
def cifar100_root(tmp_path_factory) -> Path:
    """CIFAR-100 with two images in each split."""
    root = tmp_path_factory.mktemp('cifar100')
    rng = np.random.default_rng(0)
    folder = root / 'cifar-100-python'
    folder.mkdir()
    for split in ('train', 'test'):
        pixels = rng.integers(0, 256, (2, 3 * 32 * 32), dtype=np.uint8)
        split_file = dict(data=pixels, fine_labels=[7, 99])
        (folder / split).write_bytes(pickle.dumps(split_file))
    names = [f'class_{index}' for index in range(100)]
    (folder / 'meta').write_bytes(pickle.dumps(dict(fine_label_names=names)))
    return root


@pytest.fixture
def data_root(
    cifar100_root: Path, imagenet_root: Path, monkeypatch
) -> Callable[[str], str]:
    """Find the folder of a data set by its type in the config.

    MMPretrain checks the files of CIFAR-100 by their sums, and downloads what
    differs; for this test the sums are those of the small files.
    """
    from mmpretrain.datasets import CIFAR100

    def summed(name: str) -> str:
        path = cifar100_root / CIFAR100.base_folder / name
        return hashlib.md5(path.read_bytes()).hexdigest()

    for split in ('train', 'test'):
        sums = [[split, summed(split)]]
        monkeypatch.setattr(CIFAR100, f'{split}_list', sums)
    meta = CIFAR100.meta | dict(md5=summed('meta'))
    monkeypatch.setattr(CIFAR100, 'meta', meta)
    return dict(CIFAR100=str(cifar100_root), ImageNet=str(imagenet_root)).get


def build(cfg: Config, teacher: nn.Module | None = None) -> nn.Module:
    """Build a pair on its own, around a teacher without its weights."""
    init_default_scope('mmpretrain')
    teacher = teacher or build_model(cfg.model.teacher, 'teacher')
    return MODELS.build(
        dict(
            cfg.model,
            teacher=teacher,
            teacher_ckpt='random',
            data_preprocessor=cfg.data_preprocessor,
        )
    )


@pytest.fixture(scope='session')
def build_pair() -> Callable[..., nn.Module]:
    """Build a pair on its own, around a teacher without its weights."""
    return build


def all_transforms(pipeline: list) -> Iterator[dict]:
    """Transforms of a pipeline, with those that chance chooses from."""
    for step in pipeline:
        yield step
        for choice in step.get('transforms', ()):
            yield from all_transforms(choice)


def compute_learning_rates(
    cfg: Config, epoch_length: int = 4
) -> list[list[float]]:
    """The learning rate of every step of every epoch.

    Schedulers are built by the runner and stepped as its hook does.
    """
    init_default_scope('mmpretrain')
    optim = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper)
    schedulers = []
    cfgs = copy.deepcopy(cfg.param_scheduler)
    for scheduler in cfgs if isinstance(cfgs, list) else [cfgs]:
        scheduler.setdefault('end', cfg.train_cfg.max_epochs)
        schedulers.append(
            PARAM_SCHEDULERS.build(
                scheduler,
                default_args=dict(optimizer=optim, epoch_length=epoch_length),
            )
        )
    rates = []
    for _ in range(cfg.train_cfg.max_epochs):
        rates.append([])
        for _ in range(epoch_length):
            rates[-1].append(optim.param_groups[0]['lr'])
            for scheduler in schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in schedulers:
            if scheduler.by_epoch:
                scheduler.step()
    return rates


@pytest.fixture(scope='session')
def learning_rates() -> Callable[..., list[list[float]]]:
    """The learning rate of every step of every epoch."""
    return compute_learning_rates


@pytest.fixture
def shrink(data_root) -> Callable[[Config], None]:
    """Give a config two small images, and no checkpoint of a teacher."""

    def shrink_to_images(cfg: Config) -> None:
        if isinstance(cfg.model.get('teacher'), str):
            cfg.model.teacher = read_model_cfg(cfg.model.teacher, 'teacher')
        models = [cfg.model]
        if 'architecture' in cfg.model:
            cfg.model.update(teacher_ckpt='random', input_size=PIXELS)
            models = [cfg.model.architecture, cfg.model.teacher]
        for model in models:
            if model.backbone.type not in (
                'ResNet',
                'MobileNetV2',
                'ConvNeXt',
            ):
                model.backbone.img_size = PIXELS
            if model.backbone.type == 'SwinTransformer':
                model.backbone.pad_small_map = True
        for split in ('train', 'val'):
            loader = cfg[f'{split}_dataloader']
            loader.update(batch_size=2, num_workers=0)
            loader.dataset.data_root = data_root(loader.dataset.type)
            for step in all_transforms(loader.dataset.pipeline):
                if step.type in ('RandomResizedCrop', 'ResizeEdge'):
                    step.scale = PIXELS
                elif step.type == 'CenterCrop':
                    step.crop_size = PIXELS
                elif step.type == 'Resize':
                    step.scale = (PIXELS, PIXELS)
        cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None

    return shrink_to_images


@pytest.fixture(scope='module')
def teachers() -> dict[str, nn.Module]:
    """Built teachers by their configs; they are frozen and so are shared."""
    return {}


def find_heavy(losses: dict[str, torch.Tensor]) -> list[str]:
    label = sum(
        float(v) for k, v in losses.items() if k.startswith('student.loss')
    )
    heavy = RecipeCheckHook().ratio * label
    return [
        key
        for key, value in losses.items()
        if key.startswith('distill.') and float(value) > heavy
    ]


@pytest.fixture(scope='session')
def outweighing() -> Callable[[dict[str, torch.Tensor]], list[str]]:
    """Losses of a step of which ``mmcakd.RecipeCheckHook`` would warn."""
    return find_heavy


@pytest.fixture
def first_losses(
    shrink, teachers
) -> Callable[[Config], tuple[nn.Module, dict[str, torch.Tensor]]]:
    """Build a small copy of a pair, and name its losses of two images."""

    def compute(cfg: Config) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        shrink(cfg)
        key = str(cfg.model.teacher)
        if key not in teachers:
            teachers[key] = build_model(cfg.model.teacher, 'teacher')
        model = build(cfg, teachers[key]).train()
        classes = cfg.model.architecture.head.num_classes
        data = dict(
            inputs=[torch.randint(256, (3, PIXELS, PIXELS)) for _ in range(2)],
            data_samples=[
                DataSample().set_gt_label(label) for label in (1, classes - 1)
            ],
        )
        data = model.data_preprocessor(data, training=True)
        return model, model(**data, mode='loss')

    return compute


class OneStep(Hook):
    """Keep the logged losses and stop after the first epoch, of one step."""

    losses: dict[str, torch.Tensor]

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses = outputs
        runner.train_loop.stop_training = True


@pytest.fixture
def train_one_step(shrink, tmp_path) -> Callable[..., SimpleNamespace]:
    """Run one step of training as tools/train.py does, on two images.

    The result has the ``runner``, the ``losses`` by name, and the names of
    the parameters ``before`` and of those that ``changed``.
    """

    def train(cfg: Config, validate: bool = False) -> SimpleNamespace:
        shrink(cfg)
        if not validate:
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.work_dir = str(tmp_path)
        cfg.experiment_name = tmp_path.name
        cfg.default_hooks.checkpoint = None
        cfg.default_hooks.pop('export')
        runner = Runner.from_cfg(cfg)
        step = OneStep()
        runner.register_hook(step)
        before = {
            key: value.detach().clone()
            for key, value in runner.model.named_parameters()
        }
        runner.train()
        assert runner.iter == 1
        kept = {key.partition('.')[0] for key in runner.model.state_dict()}
        assert kept == {'architecture', 'distiller'}
        changed = {
            key
            for key, value in runner.model.named_parameters()
            if not torch.equal(value, before[key])
        }
        return SimpleNamespace(
            runner=runner,
            losses={key: float(value) for key, value in step.losses.items()},
            before=set(before),
            changed=changed,
        )

    return train
