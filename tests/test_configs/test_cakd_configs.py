"""Every config of CAKD: its recipe, its preset, and one training step."""

import copy
import math
import re
from functools import cache
from pathlib import Path

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import nn

from mmcakd.engine.hooks import LossWeightScheduleHook
from mmcakd.models.teachers import build_model, load_weights
from mmcakd.models.teachers.build import read_model_cfg
from mmcakd.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs'
METHODS = CONFIGS / '_base_' / 'methods'

IN1K = dict(
    optimizer='SGD', lr=0.1, weight_decay=1e-4, epochs=120, batch=256,
    milestones=[30, 60, 90],
)  # fmt: skip
CIFAR = dict(
    optimizer='SGD', lr=0.1, weight_decay=1e-4, epochs=200, batch=64,
    milestones=[100, 150],
)  # fmt: skip
DEIT = dict(
    optimizer='AdamW', lr=1e-3, weight_decay=0.05, epochs=300, batch=1024,
    milestones=None,
)  # fmt: skip

#: Recipe, and top-1 of the paper where it has one.
RUNS = {
    'vit-b_resnet50_in1k': (IN1K, 78.34),
    'vit-l_resnet50_in1k': (IN1K, 78.85),
    'deit-b_resnet50_in1k': (IN1K, None),
    'swin-b_resnet50_in1k': (IN1K, None),
    'swin-l_resnet50_in1k': (IN1K, 78.96),
    'vit-b_resnet18_in1k': (IN1K, 71.73),
    'vit-l_resnet18_in1k': (IN1K, 72.02),
    'swin-l_resnet18_in1k': (IN1K, 72.09),
    'vit-b_mobilenetv2_in1k': (IN1K, 73.34),
    'vit-l_mobilenetv2_in1k': (IN1K, 73.52),
    'swin-l_mobilenetv2_in1k': (IN1K, 73.66),
    'vit-b_efficientnet-b0_in1k': (IN1K, 79.23),
    'vit-l_efficientnet-b0_in1k': (IN1K, 79.34),
    'swin-l_efficientnet-b0_in1k': (IN1K, 79.52),
    'vit-b_resnet50_cifar100': (CIFAR, 87.39),
    'vit-l_resnet50_cifar100': (CIFAR, 88.09),
    'swin-l_resnet50_cifar100': (CIFAR, 88.46),
    'vit-b_resnet50_official-code_in1k': (IN1K, None),
    'resnet50_deit-s_in1k': (DEIT, None),
}
OFFICIAL = 'vit-b_resnet50_official-code_in1k'
INVERSE = 'resnet50_deit-s_in1k'
CIFAR_TEACHERS = ('vit-b', 'vit-l', 'swin-l')

#: Parameters with 1000 classes, width before the classifier, and width at
#: stride 16.
STUDENTS = {
    'resnet50': (25_557_032, 2048, 1024),
    'resnet18': (11_689_512, 512, 256),
    'mobilenetv2': (3_504_872, 1280, 96),
    'efficientnet-b0': (5_288_548, 1280, 112),
    'deit-s': (22_050_664, 384, 384),
}

every_run = pytest.mark.parametrize('name', RUNS)


@cache
def parse(path: Path) -> Config:
    return Config.fromfile(path)


def read_config(name: str, folder: str = 'cakd') -> Config:
    return copy.deepcopy(parse(CONFIGS / folder / f'{name}.py'))


def read_method(name: str) -> Config:
    return copy.deepcopy(parse(METHODS / f'{name}.py'))


def split_name(name: str) -> tuple[str, str, int]:
    """Names of teacher and student, and number of classes."""
    teacher, student, *_, data = name.split('_')
    return teacher, student, dict(cifar100=100, in1k=1000)[data]


def test_these_runs_and_no_others_have_configs():
    found = {path.stem for path in (CONFIGS / 'cakd').glob('*.py')}
    assert found == set(RUNS)


@pytest.mark.parametrize(
    'name', ['swin-l_mobilenetv2_in1k', OFFICIAL, INVERSE]
)
def test_dumping_and_reading_again_changes_nothing(name, tmp_path):
    cfg = read_config(name)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


# --------------------------------------------------------------- documents


def test_documents_list_every_config():
    folder = CONFIGS / 'cakd'
    readme = (folder / 'README.md').read_text('utf-8')
    models = load(folder / 'metafile.yml')['Models']
    assert {model['Name'] for model in models} == {
        f'cakd_{name}' for name in RUNS
    }
    for model in models:
        name = model['Name'].removeprefix('cakd_')
        recipe, top1 = RUNS[name]
        _, student, classes = split_name(name)
        assert model['Config'] == f'configs/cakd/{name}.py'
        assert model['Metadata']['Epochs'] == recipe['epochs']
        assert model['Metadata']['Batch Size'] == recipe['batch']
        count, width, _ = STUDENTS[student]
        count -= (1000 - classes) * (width + 1)
        assert model['Metadata']['Parameters'] == count
        (row,) = (
            line for line in readme.splitlines() if f'({name}.py)' in line
        )
        found = [
            result['Metrics']['Top 1 Accuracy']
            for result in model.get('Results', [])
        ]
        assert found == ([] if top1 is None else [top1])
        assert row.split(' | ')[-2] == (f'{top1:.2f}' if top1 else '-')
    assert (
        'configs/cakd/metafile.yml'
        in (load(CONFIGS.parent / 'model-index.yml')['Import'])
    )


def test_configs_in_the_readme_are_complete(tmp_path, data_root):
    readme = (CONFIGS / 'cakd' / 'README.md').read_text('utf-8')
    projectors, whole, changed = (
        Config.fromfile(write(tmp_path / f'config_{index}.py', code))
        for index, code in enumerate(
            re.findall(r'```python\n(.*?)```', readme, re.DOTALL)
        )
    )
    shrink(projectors, data_root)
    model = build_pair(projectors)
    assert set(model.distiller.connectors) == {'glp', 'pca'}
    shrink(whole, data_root)
    model = build_pair(whole)
    assert set(model.discriminators) == {'loss_adv'}
    assert whole.optim_wrapper.student.optimizer.lr == 0.05

    assert changed.model.view_generator.prob == 0.5
    views = MODELS.build(changed.model.view_generator)
    assert views.is_geometric
    losses = changed.model.distiller.distill_losses
    assert losses.loss_adv.saturating
    assert losses.loss_pca.type == 'mmcakd.PCALoss'
    assert changed.optim_wrapper.discriminator.optimizer.type == 'Adam'


def write(path: Path, code: str) -> Path:
    """Write a config that lies in configs/cakd elsewhere."""
    code = code.replace("'./", f"'{CONFIGS}/cakd/")
    path.write_text(code.replace("'../", f"'{CONFIGS}/"))
    return path


# ----------------------------------------------------------------- recipes


@every_run
def test_recipe_is_the_published_one(name):
    cfg, (expected, _) = read_config(name), RUNS[name]
    *_, classes = split_name(name)
    optim = cfg.optim_wrapper
    optim = optim if name == INVERSE else optim.student
    found = dict(
        optimizer=optim.optimizer.type,
        lr=optim.optimizer.lr,
        weight_decay=optim.optimizer.weight_decay,
        epochs=cfg.train_cfg.max_epochs,
        batch=8 * cfg.train_dataloader.batch_size,
        milestones=cfg.param_scheduler.get('milestones')
        if isinstance(cfg.param_scheduler, dict)
        else None,
    )
    assert found == expected
    assert cfg.auto_scale_lr.base_batch_size == expected['batch']
    assert optim.optimizer.get('momentum', 0.9) == 0.9
    # From scratch.
    student = cfg.model.architecture
    assert student.get('init_cfg', {}) == {} or name == INVERSE
    assert 'Pretrained' not in str(student)
    assert not cfg.get('load_from')

    steps = {step.type for step in cfg.train_dataloader.dataset.pipeline}
    assert {'RandomResizedCrop', 'RandomFlip'} <= steps
    assert ('RandAugment' in steps) == (name == INVERSE)
    assert bool(student.get('train_cfg')) == (name == INVERSE)
    label_loss = 'LabelSmoothLoss' if name == INVERSE else 'CrossEntropyLoss'
    assert student.head.loss.type == label_loss
    assert student.head.num_classes == classes
    assert cfg.data_preprocessor.num_classes == classes
    assert cfg.model.input_size == 224
    assert cfg.model.get('student_loss_weight', 1) == 1


@pytest.mark.parametrize(
    'name', ['vit-b_resnet50_in1k', 'vit-b_resnet50_cifar100']
)
def test_learning_rate_falls_to_a_tenth_at_the_milestones(name):
    cfg, (expected, _) = read_config(name), RUNS[name]
    init_default_scope('mmpretrain')
    optim = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper.student)
    scheduler = PARAM_SCHEDULERS.build(
        cfg.param_scheduler, default_args=dict(optimizer=optim)
    )
    rates = []
    for _ in range(cfg.train_cfg.max_epochs):
        rates.append(optim.param_groups[0]['lr'])
        scheduler.step()
    edges = [0, *expected['milestones'], expected['epochs']]
    for drops, (start, end) in enumerate(
        zip(edges[:-1], edges[1:], strict=True)
    ):
        assert rates[start:end] == pytest.approx(
            [0.1 / 10**drops] * (end - start)
        )


# ----------------------------------------------------------------- presets


def losses_of(distiller: dict) -> dict[str, str]:
    return {
        name: loss['type'].removeprefix('mmcakd.')
        for name, loss in distiller.distill_losses.items()
    }


def test_ablation_adds_part_by_part():
    gl, gl_pca, whole = (
        read_method(name).distiller
        for name in ('cakd_gl', 'cakd_gl_pca', 'cakd')
    )
    assert losses_of(gl) == dict(loss_glp='MSELoss')
    assert losses_of(gl_pca) == losses_of(gl) | dict(loss_pca='PCALoss')
    assert losses_of(whole) == losses_of(gl_pca) | dict(
        loss_adv='AdversarialLoss'
    )
    for smaller, larger in ((gl, gl_pca), (gl_pca, whole)):
        for part in ('connectors', 'distill_losses', 'loss_forward_mappings'):
            assert smaller[part].items() <= larger[part].items()


def test_paper_preset_has_the_equations_of_the_paper():
    distiller = read_method('cakd').distiller
    losses, connectors = distiller.distill_losses, distiller.connectors
    assert losses.loss_glp.loss_weight == losses.loss_pca.loss_weight == 1
    assert losses.loss_pca.attn_weight == losses.loss_pca.gram_weight == 1
    assert connectors.pca.replace_prob == 0.5
    # The defaults are the paper's.
    pca = MODELS.build(without_inputs(connectors.pca))
    assert (pca.qkv, pca.replace, pca.attn_target) == (
        'conv',
        'element',
        'output',
    )
    third, last = (
        dict(recorder='stages', from_student=student, data_idx=index)
        for student, index in ((True, 2), (False, -1))
    )
    assert connectors.pca.inputs.feature == third
    assert connectors.glp.inputs.feature == third
    assert connectors.glp.shape_like == last
    assert distiller.teacher_recorders.qkv.block == -1
    for name in ('loss_glp', 'loss_adv'):
        assert distiller.loss_forward_mappings[name] == dict(
            student=dict(connector='glp'), teacher=last
        )
    training = read_method('cakd_training').multi_view
    assert training.discriminator_interval == 5
    assert training.view_generator.prob == 0.5


def test_official_preset_has_the_values_of_the_public_code():
    distiller = read_method('cakd_official_code').distiller
    losses, connectors = distiller.distill_losses, distiller.connectors
    assert without_inputs(connectors.pca) == dict(
        type='mmcakd.PCAConnector', qkv='linear', num_heads=16, head_dims=64,
        replace_prob=0, attn_target='score', average_heads=True,
    )  # fmt: skip
    assert losses.loss_pca == dict(
        type='mmcakd.PCALoss', attn_weight=0.2, gram_weight=0.05,
        average_heads=True, scale_teacher_gram=False,
    )  # fmt: skip
    weights = {
        name: loss.get('loss_weight', 1) for name, loss in losses.items()
    }
    assert weights == dict(
        loss_glp=0.05, loss_cls_token=1, loss_logits=1, loss_pca=1, loss_adv=1
    )
    assert losses.loss_adv.discriminator.type == 'mmcakd.PatchDiscriminator'
    assert connectors.pooled.inputs.feature.data_idx == 3


def test_official_schedule_is_the_one_of_the_public_code():
    cfg = read_config(OFFICIAL)
    (ramp,) = cfg.custom_hooks
    assert ramp.pop('type') == 'mmcakd.LossWeightScheduleHook'
    hook = LossWeightScheduleHook(**ramp)
    assert hook.losses is None  # all of them
    for epoch in range(120):
        expected = min(max(epoch - 25, 0) / 50, 0.2)
        assert hook.factor(epoch) == pytest.approx(expected)
    student, discriminator = (
        cfg.optim_wrapper[part].optimizer
        for part in ('student', 'discriminator')
    )
    assert discriminator.type == 'SGD'
    assert discriminator.lr == pytest.approx(0.01 * student.lr)


def without_inputs(connector: dict) -> dict:
    return {
        key: value
        for key, value in connector.items()
        if key not in ('inputs', 'shape_like')
    }


# ---------------------------------------------------------------- teachers


def weights_of(model_cfg: str) -> set[str]:
    """URLs that MMPretrain's zoo has for one of its configs."""
    import mmpretrain

    zoo = Path(mmpretrain.__file__).parent / '.mim' / 'configs'
    folder, _, stem = model_cfg.partition('/')
    return {
        model['Weights']
        for model in load(zoo / folder / 'metafile.yml')['Models']
        if model['Config'] == f'configs/{folder}/{stem}'
    }


@pytest.mark.parametrize('name', [n for n in RUNS if n.endswith('in1k')])
def test_imagenet_teacher_has_a_checkpoint_of_the_zoo(name):
    model = read_config(name).model
    scope, _, path = model.teacher.partition('::')
    assert scope == 'mmpretrain'
    assert model.teacher_ckpt in weights_of(path)


@pytest.mark.parametrize('teacher', CIFAR_TEACHERS)
def test_cifar_teacher_is_tuned_from_the_imagenet_teacher(teacher):
    cfg = read_config(f'{teacher}_cifar100', 'cifar_teachers')
    pair = read_config(f'{teacher}_resnet50_cifar100')
    last = f'work_dirs/{teacher}_cifar100/epoch_{cfg.train_cfg.max_epochs}.pth'
    assert pair.model.teacher_ckpt == last
    start = cfg.model.backbone.pop('init_cfg')
    pair.model.teacher.backbone.pop('init_cfg', None)
    assert pair.model.teacher == cfg.model
    assert cfg.data_preprocessor == pair.data_preprocessor
    assert cfg.val_dataloader.dataset == pair.val_dataloader.dataset

    imagenet = read_config(f'{teacher}_resnet50_in1k').model
    assert start == dict(
        type='Pretrained',
        checkpoint=imagenet.teacher_ckpt,
        prefix='backbone.',
    )
    theirs = read_model_cfg(imagenet.teacher, 'teacher')['backbone']
    for backbone in (cfg.model.backbone, theirs):
        for key in ('drop_path_rate', 'init_cfg'):
            backbone.pop(key, None)
    assert cfg.model.backbone == theirs


# ------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    'name', [n for n in RUNS if n.startswith('vit-b') and n != OFFICIAL]
)
def test_student_and_projectors_have_their_sizes(name, data_root):
    cfg = read_config(name)
    shrink(cfg, data_root)
    _, student, classes = split_name(name)
    model = build_pair(cfg)
    count, width, channels = STUDENTS[student]
    count -= (1000 - classes) * (width + 1)
    assert parameters(model.architecture) == count
    # A grid of 4x4 is a single tile.
    d = SMALL['VisionTransformer'][1]
    connectors = model.distiller.connectors
    assert parameters(connectors['glp']) == (channels + 1) * d
    assert parameters(connectors['pca']) == (9 * channels + 1) * 3 * d


def test_full_size_pair_at_224_px():
    model = build_pair(read_config('vit-b_resnet50_in1k'))
    connectors = model.distiller.connectors
    # 14x14 places in 16 tiles.
    assert parameters(connectors['glp']) == 16 * (1024 + 1) * 768
    assert parameters(connectors['pca']) == (9 * 1024 + 1) * 3 * 768
    assert connectors['pca'].num_heads == 12
    (discriminator,) = model.discriminators.values()
    widths = [768, 384, 192, 1]
    assert parameters(discriminator) == sum(
        (before + 1) * after
        for before, after in zip(widths[:-1], widths[1:], strict=True)
    )


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ----------------------------------------------------------- one real step

#: The same classes of networks, small, and the width of what they return.
SMALL = {
    'VisionTransformer': (
        dict(
            embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=16
        ),
        32,
    ),
    'DeiT3': (
        dict(
            embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=16
        ),
        32,
    ),
    'SwinTransformer': (
        dict(embed_dims=8, depths=[1] * 4, num_heads=[1, 1, 1, 2]),
        64,
    ),
}
#: The public code's variant is made for tokens of this width, and for grids
#: that PatchGAN can take.
OFFICIAL_ARCH = dict(
    embed_dims=768, num_layers=4, num_heads=12, feedforward_channels=16
)


def shrink(cfg: Config, data_root, pixels: int = 64) -> None:
    """Two small images, and a small teacher without a checkpoint."""
    if 'pooled' in cfg.model.distiller.connectors:
        pixels = 96
    if isinstance(cfg.model.teacher, str):
        cfg.model.teacher = read_model_cfg(cfg.model.teacher, 'teacher')
    cfg.model.update(teacher_ckpt='random', input_size=pixels)
    teacher = cfg.model.teacher
    if teacher.backbone.type == 'ResNet':
        teacher.backbone.update(stem_channels=8, base_channels=8)
        teacher.head.in_channels = 256
    elif pixels == 96:
        teacher.backbone.arch = OFFICIAL_ARCH
    else:
        arch, width = SMALL[teacher.backbone.type]
        teacher.backbone.arch = arch
        teacher.head.in_channels = width
    for model in (cfg.model.architecture, teacher):
        if model.backbone.type in SMALL:
            model.backbone.img_size = pixels
        if model.backbone.type == 'SwinTransformer':
            model.backbone.pad_small_map = True
    loader = cfg.train_dataloader
    loader.update(batch_size=2, num_workers=0)
    loader.dataset.data_root = data_root(loader.dataset.type)
    for step in loader.dataset.pipeline:
        if step.type == 'RandomResizedCrop':
            step.scale = pixels


def build_pair(cfg: Config) -> nn.Module:
    """Build a pair on its own, around a teacher without its weights."""
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(
            cfg.model,
            teacher=build_model(cfg.model.teacher, 'teacher'),
            teacher_ckpt='random',
            data_preprocessor=cfg.data_preprocessor,
        )
    )


def preset_of(name: str) -> str:
    special = {OFFICIAL: 'cakd_official_code', INVERSE: 'cakd_inverse'}
    return special.get(name, 'cakd')


@every_run
def test_losses_reach_student_and_projectors(name, data_root, outweighing):
    cfg = read_config(name)
    shrink(cfg, data_root)
    *_, classes = split_name(name)
    preset = read_method(preset_of(name)).distiller
    assert cfg.model.distiller == preset
    model = build_pair(cfg).train()
    # What the optimizer of a run does.
    model.alternates = True
    pixels = cfg.model.input_size
    data = dict(
        inputs=[torch.randint(256, (3, pixels, pixels)) for _ in range(2)],
        data_samples=[
            DataSample().set_gt_label(label) for label in (1, classes - 1)
        ],
    )
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    assert set(losses) == {'student.loss'} | {
        f'distill.{name}' for name in preset.distill_losses
    }
    assert all(math.isfinite(loss) for loss in losses.values())
    # Its hook weighs them by nothing in the first epochs.
    if 'official' not in name:
        assert not outweighing(losses)
    if name != INVERSE:
        # The public code cuts this one off.
        tapped = [
            p
            for key, p in model.architecture.backbone.named_parameters()
            if key.startswith(('conv1.', 'layers.0.'))
        ]
        grads = torch.autograd.grad(
            losses['distill.loss_adv'], tapped, retain_graph=True
        )
        assert all(grad.abs().sum() > 0 for grad in grads)
        # An undecided discriminator, twice.
        assert model.discriminator_loss().item() == pytest.approx(
            2 * math.log(2), rel=0.3
        )
    total, _ = model.parse_losses(losses)
    total.backward()
    for key, param in model.named_parameters():
        assert (param.grad is None) == ('discriminator' in key), key
        if param.grad is not None:
            assert torch.isfinite(param.grad).all(), key
    assert all(p.grad is None for p in model.teacher.parameters())


class OneStep(Hook):
    """Keep the logged losses and stop after the first epoch, of one step."""

    losses: dict[str, torch.Tensor]

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses = outputs
        runner.train_loop.stop_training = True


def start(cfg: Config, data_root, tmp_path: Path) -> tuple[Runner, OneStep]:
    shrink(cfg, data_root)
    for key in ('val', 'test'):
        for part in ('cfg', 'dataloader', 'evaluator'):
            cfg[f'{key}_{part}'] = None
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = tmp_path.name
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.pop('export')
    runner = Runner.from_cfg(cfg)
    step = OneStep()
    runner.register_hook(step)
    return runner, step


def train(runner: Runner) -> set[str]:
    """Train one step, and name what has changed."""
    model = runner.model
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    runner.train()
    assert runner.iter == 1
    assert not any('teacher' in key for key in model.state_dict())
    return {
        key
        for key, p in model.named_parameters()
        if not torch.equal(p, before[key])
    }


@pytest.mark.parametrize(
    ('name', 'interval'),
    [
        ('vit-b_mobilenetv2_in1k', 1),
        ('vit-b_mobilenetv2_in1k', 2),
        ('swin-l_resnet50_cifar100', 1),
    ],
)
def test_one_training_step(name, interval, data_root, tmp_path):
    cfg = read_config(name)
    cfg.model.discriminator_interval = interval
    runner, step = start(cfg, data_root, tmp_path)
    changed = train(runner)
    losses = {key: float(value) for key, value in step.losses.items()}
    assert all(map(math.isfinite, losses.values()))
    assert losses.pop('loss') == pytest.approx(sum(losses.values()), rel=1e-5)
    assert any('architecture.backbone' in key for key in changed)
    for part in ('glp.weight', 'pca.project.weight'):
        assert f'distiller.connectors.{part}' in changed
    # It has its turn in every step, or in every second.
    turns = {key for key in changed if 'discriminator' in key}
    assert bool(turns) == (interval == 1)
    student, discriminator = (
        runner.optim_wrapper[part].optimizer
        for part in ('student', 'discriminator')
    )
    assert (type(student), type(discriminator)) == (
        torch.optim.SGD,
        torch.optim.Adam,
    )


def test_official_run_starts_with_the_labels_alone(data_root, tmp_path):
    cfg = read_config(OFFICIAL)
    cfg.model.discriminator_interval = 1
    runner, step = start(cfg, data_root, tmp_path)
    changed = train(runner)
    distill = {key: v for key, v in step.losses.items() if 'distill' in key}
    assert len(distill) == 5
    assert all(value == 0 for value in distill.values())
    assert any('architecture' in key for key in changed)
    # It learns from the first epoch on.
    assert any('discriminator' in key for key in changed)


def test_one_training_step_of_the_other_direction(data_root, tmp_path):
    runner, step = start(read_config(INVERSE), data_root, tmp_path)
    changed = train(runner)
    assert all(math.isfinite(value) for value in step.losses.values())
    for part in ('iglp.weight', 'ipca.project.weight'):
        assert f'distiller.connectors.{part}' in changed
    assert runner.model.distiller.distill_losses['loss_router'].steps == 1
    assert runner.model.data_preprocessor.batch_augments is not None


# ------------------------------------------------------ teachers on CIFAR


@pytest.mark.parametrize('teacher', CIFAR_TEACHERS)
def test_teacher_starts_from_a_backbone_and_is_taken_by_its_pair(
    teacher, data_root, tmp_path
):
    pair = read_config(f'{teacher}_resnet50_cifar100')
    shrink(pair, data_root)
    small = pair.model.teacher
    init_default_scope('mmpretrain')
    source = copy.deepcopy(small)
    source.head.num_classes = 1000
    source = build_model(source, 'teacher')
    for param in source.parameters():
        nn.init.normal_(param, std=0.02)
    imagenet, tuned_to = tmp_path / 'imagenet.pth', tmp_path / 'epoch_20.pth'
    torch.save(dict(state_dict=source.state_dict(), meta={}), imagenet)

    model = read_config(f'{teacher}_cifar100', 'cifar_teachers').model
    model.backbone.update(arch=small.backbone.arch, img_size=64)
    model.backbone.init_cfg.checkpoint = str(imagenet)
    model.head.in_channels = small.head.in_channels
    tuned = build_model(model, 'teacher')
    tuned.init_weights()
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(tuned.backbone.state_dict()[key], value), key

    torch.save(dict(state_dict=tuned.state_dict(), meta={}), tuned_to)
    loaded = build_model(small, 'teacher')
    load_weights(loaded, str(tuned_to))
    torch.testing.assert_close(loaded.state_dict(), tuned.state_dict())
