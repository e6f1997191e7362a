"""Every config of OFA-KD: its recipe, its sizes, and one training step."""

import copy
import gc
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.hooks import EMAHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from timm.models import get_pretrained_cfg
from torch import nn

from mmcakd.models.teachers import build_model, load_weights
from mmcakd.utils import export_student

CONFIGS = Path(__file__).parents[2] / 'configs'

CIFAR_CNN = dict(
    optimizer='SGD', lr=0.05, first_lr=1e-4, last_lr=1e-3, weight_decay=2e-3,
    warmup=3, epochs=300, batch=1024, clip=None, ema=None, strong=False,
)  # fmt: skip
CIFAR_TOKENS = dict(
    optimizer='AdamW', lr=5e-4, first_lr=5e-7, last_lr=1e-5, weight_decay=0.05,
    warmup=20, epochs=300, batch=1024, clip=5.0, ema=None, strong=True,
)  # fmt: skip
IN1K_CNN = dict(
    optimizer='SGD', lr=0.1, first_lr=1e-4, last_lr=1e-4, weight_decay=1e-4,
    warmup=3, epochs=100, batch=512, clip=None, ema=None, strong=False,
)  # fmt: skip
IN1K_TOKENS = dict(
    optimizer='AdamW', lr=5e-4, first_lr=5e-7, last_lr=1e-6, weight_decay=0.05,
    warmup=20, epochs=300, batch=1024, clip=5.0, ema=0.99996, strong=True,
)  # fmt: skip


def pair(recipe, heads, eps=1.0, weight=1.0, **changes) -> dict:
    """Describe a config.

    Args:
        recipe (dict): One of those above.
        heads (int): Parameters of the student's heads.
        eps (float): Exponent of the losses.
        weight (float): Weight of the heads' loss.
        **changes: Of the recipe.
    """
    return dict(recipe=recipe | changes, heads=heads, eps=eps, weight=weight)


#: The figures of the paper and of its public code.
PAIRS = {
    'swin-t_resnet18_cifar100': pair(CIFAR_CNN, 1_626_256, weight=0.1, lr=0.1),
    'vit-s_resnet18_cifar100': pair(CIFAR_CNN, 1_194_384),
    'mixer-b_resnet18_cifar100': pair(CIFAR_CNN, 1_626_256),
    'swin-t_mobilenetv2_cifar100': pair(CIFAR_CNN, 2_529_296, weight=0.1),
    'vit-s_mobilenetv2_cifar100': pair(CIFAR_CNN, 2_529_296, weight=0.1),
    'mixer-b_mobilenetv2_cifar100': pair(CIFAR_CNN, 2_529_296, weight=0.1),
    'convnext-t_deit-t_cifar100': pair(CIFAR_TOKENS, 3_783_184),
    'mixer-b_deit-t_cifar100': pair(CIFAR_TOKENS, 3_783_184),
    'convnext-t_swin-p_cifar100': pair(CIFAR_TOKENS, None),
    'mixer-b_swin-p_cifar100': pair(CIFAR_TOKENS, None),
    'convnext-t_resmlp-s12_cifar100': pair(CIFAR_TOKENS, None),
    'swin-t_resmlp-s12_cifar100': pair(CIFAR_TOKENS, None),
    'deit-t_resnet18_in1k': pair(IN1K_CNN, 3_041_184, eps=1.5),
    'swin-t_resnet18_in1k': pair(IN1K_CNN, 4_394_656),
    'mixer-b_resnet18_in1k': pair(IN1K_CNN, 4_394_656),
    'deit-t_mobilenetv2_in1k': pair(IN1K_CNN, 7_140_896),
    'swin-t_mobilenetv2_in1k': pair(IN1K_CNN, 7_140_896),
    'mixer-b_mobilenetv2_in1k': pair(IN1K_CNN, 7_140_896),
    'resnet50_deit-t_in1k': pair(IN1K_TOKENS, 4_477_984),
    'convnext-t_deit-t_in1k': pair(IN1K_TOKENS, 4_477_984),
    'mixer-b_deit-t_in1k': pair(IN1K_TOKENS, 4_477_984),
    'resnet50_swin-n_in1k': pair(IN1K_TOKENS, 28_187_040),
    'convnext-t_swin-n_in1k': pair(IN1K_TOKENS, 28_187_040),
    'mixer-b_swin-n_in1k': pair(IN1K_TOKENS, 28_187_040),
    'resnet50_resmlp-s12_in1k': pair(IN1K_TOKENS, 16_324_768),
    'convnext-t_resmlp-s12_in1k': pair(IN1K_TOKENS, 16_324_768),
    'swin-t_resmlp-s12_in1k': pair(IN1K_TOKENS, 16_324_768),
}
CIFAR_PAIRS = [name for name in PAIRS if name.endswith('cifar100')]
CIFAR_TEACHERS = ('swin-t', 'vit-s', 'mixer-b', 'convnext-t')

#: Parameters with 1000 classes, and width before the classifier.
STUDENTS = {
    'resnet18': (11_689_512, 512),
    'mobilenetv2': (3_504_872, 1280),
    'deit-t': (5_717_416, 192),
    'swin-n': (9_599_940, 512),
    'swin-p': (5_506_996, 384),
    # timm's 15_350_872 without its last scale and shift.
    'resmlp-s12': (15_350_872 - 2 * 384, 384),
}

every_config = pytest.mark.parametrize('name', PAIRS)


@cache
def parse(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


def read_config(name: str) -> Config:
    folder = 'ofakd/' if name in PAIRS else 'cifar_teachers/'
    return copy.deepcopy(parse(folder + name))


def split_name(name: str) -> tuple[str, str, int]:
    """Names of teacher and student, and number of classes."""
    teacher, student, data = name.split('_')
    return teacher, student, dict(cifar100=100, in1k=1000)[data]


def test_the_published_pairs_and_no_others_have_configs():
    found = {path.stem for path in (CONFIGS / 'ofakd').glob('*.py')}
    assert found == set(PAIRS)
    pairs = {path.stem for path in (CONFIGS / '_base_' / 'pairs').glob('*')}
    assert set(PAIRS) <= pairs
    teachers = {p.stem for p in (CONFIGS / 'cifar_teachers').glob('*.py')}
    assert {f'{name}_cifar100' for name in CIFAR_TEACHERS} <= teachers


@pytest.mark.parametrize(
    'name',
    [
        'swin-t_resnet18_cifar100',
        'convnext-t_resmlp-s12_cifar100',
        'deit-t_resnet18_in1k',
        'mixer-b_swin-n_in1k',
        'vit-s_cifar100',
    ],
)
def test_dumping_and_reading_again_changes_nothing(name, tmp_path):
    cfg = read_config(name)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


# --------------------------------------------------------------- documents


def test_documents_list_every_config():
    folder = CONFIGS / 'ofakd'
    readme = (folder / 'README.md').read_text('utf-8')
    models = load(folder / 'metafile.yml')['Models']
    assert {model['Name'] for model in models} == {
        f'ofakd_{name}' for name in PAIRS
    }
    for model in models:
        name = model['Name'].removeprefix('ofakd_')
        _, student, classes = split_name(name)
        recipe = PAIRS[name]['recipe']
        assert model['Config'] == f'configs/ofakd/{name}.py'
        assert model['Metadata']['Epochs'] == recipe['epochs']
        assert model['Metadata']['Batch Size'] == recipe['batch']
        count, width = STUDENTS[student]
        count -= (1000 - classes) * (width + 1)
        assert model['Metadata']['Parameters'] == count
        (row,) = (
            line for line in readme.splitlines() if f'({name}.py)' in line
        )
        top1 = model['Results'][0]['Metrics']['Top 1 Accuracy']
        assert row.split(' | ')[-2].removesuffix(' \\*') == f'{top1:.2f}'


def test_configs_in_the_readme_are_complete(build_pair, tmp_path):
    readme = (CONFIGS / 'ofakd' / 'README.md').read_text('utf-8')
    exponents, pair_of_two_lines = (
        Config.fromfile(write(tmp_path / f'config_{index}.py', code))
        for index, code in enumerate(
            re.findall(r'```python\n(.*?)```', readme, re.DOTALL)
        )
    )
    losses = exponents.model.distiller.distill_losses
    assert losses.loss_ofa.eps == [1.1, 1.2, 1.3, 1.4]
    assert (losses.loss_kd.eps, losses.loss_ofa.loss_weight) == (1.4, 0.1)
    for cfg in (exponents, pair_of_two_lines):
        heads = build_pair(cfg).distiller.connectors['heads'].heads
        assert len(heads) == 4


def write(path: Path, code: str) -> Path:
    """Write a config that lies in configs/ofakd elsewhere."""
    code = code.replace("'./", f"'{CONFIGS}/ofakd/")
    path.write_text(code.replace("'../", f"'{CONFIGS}/"))
    return path


# ----------------------------------------------------------------- recipes


@every_config
def test_recipe_is_the_published_one(name):
    cfg, expected = read_config(name), PAIRS[name]['recipe']
    *_, classes = split_name(name)
    optim, hooks = cfg.optim_wrapper, cfg.get('custom_hooks', [])
    warmup, _ = cfg.param_scheduler
    found = dict(
        optimizer=optim.optimizer.type,
        lr=optim.optimizer.lr,
        weight_decay=optim.optimizer.weight_decay,
        warmup=warmup.end,
        epochs=cfg.train_cfg.max_epochs,
        batch=8 * cfg.train_dataloader.batch_size,
        clip=optim.get('clip_grad') and optim.clip_grad.max_norm,
        ema=1 - hooks[0].momentum if hooks else None,
    )
    assert found == {key: expected[key] for key in found}
    assert [hook.type for hook in hooks] == ['EMAHook'] * bool(expected['ema'])
    assert cfg.auto_scale_lr.base_batch_size == expected['batch']
    if expected['optimizer'] == 'SGD':
        assert (optim.optimizer.momentum, optim.optimizer.nesterov) == (
            0.9,
            True,
        )

    # What is done to images and labels.
    pipeline = {
        step.type: step for step in cfg.train_dataloader.dataset.pipeline
    }
    if classes == 100:
        crops = [crop for (crop,) in pipeline['RandomChoice'].transforms]
        assert 'prob' not in pipeline['RandomChoice']
    else:
        crops = [pipeline['RandomResizedCrop']]
    assert {(crop.type, crop.scale) for crop in crops} == {
        ('RandomResizedCrop', 224)
    }
    assert [crop.interpolation for crop in crops] == (
        ['bilinear', 'bicubic'] if classes == 100 else ['bicubic']
    )
    assert pipeline['RandomFlip'].prob == 0.5
    augments = (cfg.model.architecture.get('train_cfg') or {}).get('augments')
    if expected['strong']:
        randaug = pipeline['RandAugment']
        assert (randaug.magnitude_level, randaug.total_level) == (9, 10)
        assert (randaug.num_policies, randaug.magnitude_std) == (2, 0.5)
        erase = pipeline['RandomErasing']
        assert (erase.erase_prob, erase.mode) == (0.25, 'rand')
        assert augments == [
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    else:
        assert not {'RandAugment', 'RandomErasing'} & set(pipeline)
        assert not augments
    head = cfg.model.architecture.head
    assert (head.loss.type, head.loss.label_smooth_val) == (
        'LabelSmoothLoss',
        0.1,
    )
    assert head.num_classes == cfg.data_preprocessor.num_classes == classes
    assert cfg.model.input_size == 224
    assert cfg.model.get('student_loss_weight', 1) == 1


@pytest.mark.parametrize('name', CIFAR_PAIRS)
def test_cifar_is_evaluated_as_timm_does(name):
    """Bilinearly, on the central part that timm has for the student."""
    cfg = read_config(name)
    _, student, _ = split_name(name)
    crop_pct = dict(
        resnet18='resnet18.tv_in1k',
        mobilenetv2='mobilenetv2_100',
        resmlp='resmlp_12_224',
        deit='deit_tiny_patch16_224',
        swin='swin_tiny_patch4_window7_224',
    )[student.partition('-')[0]]
    crop_pct = get_pretrained_cfg(crop_pct).crop_pct
    assert cfg.test_dataloader == cfg.val_dataloader
    resize, crop, _ = cfg.val_dataloader.dataset.pipeline
    assert (resize.type, resize.edge) == ('ResizeEdge', 'short')
    assert resize.interpolation == 'bilinear'
    assert resize.scale == math.floor(224 / crop_pct)
    assert (crop.type, crop.crop_size) == ('CenterCrop', 224)


@pytest.mark.parametrize('name', [n for n in PAIRS if '_swin-' in n])
def test_stochastic_depth_of_swin_students(name):
    backbone = read_config(name).model.architecture.backbone
    expected = 0.0 if '_swin-n_' in name else 0.1
    assert backbone.drop_path_rate == expected


@every_config
def test_learning_rate_takes_its_course(name, learning_rates):
    cfg, expected = read_config(name), PAIRS[name]['recipe']
    rates = learning_rates(cfg)
    warmup = expected['warmup']
    assert rates[0][0] == pytest.approx(expected['first_lr'])
    assert rates[warmup][0] == pytest.approx(expected['lr'])
    assert max(map(max, rates)) == rates[warmup][0]
    rising = sum(rates[:warmup], [])
    assert rising == sorted(set(rising))
    if expected['epochs'] == 100:
        for epoch, factor in ((29, 1), (30, 0.1), (60, 0.01), (90, 0.001)):
            assert rates[epoch][-1] == pytest.approx(expected['lr'] * factor)
        assert rates[-1][-1] == pytest.approx(expected['last_lr'])
    else:
        last, period = expected['last_lr'], expected['epochs'] - warmup
        half = (expected['lr'] - last) / 2
        for epoch in (100, 299):
            angle = math.pi * (epoch - warmup) / period
            cosine = last + half * (1 + math.cos(angle))
            assert rates[epoch] == pytest.approx([cosine] * 4)
        assert rates[-1][-1] == pytest.approx(last, rel=0.02)


@every_config
def test_norms_biases_and_tokens_do_not_decay(name):
    cfg, expected = read_config(name), PAIRS[name]['recipe']
    init_default_scope('mmpretrain')
    student = nn.ModuleDict(
        dict(architecture=build_model(cfg.model.architecture, 'student'))
    )
    optim = build_optim_wrapper(student, cfg.optim_wrapper)
    names = {id(param): name for name, param in student.named_parameters()}
    decays = {
        names[id(param)]: group['weight_decay']
        for group in optim.optimizer.param_groups
        for param in group['params']
    }
    assert len(decays) == len(names)
    free = ('bias', 'cls_token', 'pos_embed', 'relative_position_bias_table')
    for key, param in student.named_parameters():
        decay_free = key.endswith(free) or param.ndim == 1
        # ResMLP's scales and shifts count as weights, as they do in timm.
        wanted = 0 if decay_free else expected['weight_decay']
        assert decays[key] == wanted, key


@every_config
def test_method_has_its_weights_and_exponents(name):
    cfg, expected = read_config(name), PAIRS[name]
    distiller = cfg.model.distiller
    losses = distiller.distill_losses
    assert set(losses) == {'loss_kd', 'loss_ofa'}
    assert losses.loss_kd.loss_weight == 1
    assert losses.loss_ofa.loss_weight == expected['weight']
    assert losses.loss_kd.eps == losses.loss_ofa.eps == expected['eps']
    for mapping in distiller.loss_forward_mappings.values():
        assert mapping.label == dict(label='auto')
        assert mapping.teacher == dict(recorder='logits', from_student=False)
    stages = distiller.student_recorders.stages
    assert (stages.final_norm, stages.extra_tokens) == (False, True)


# ---------------------------------------------------------------- teachers


def weights_of(model_cfg: str) -> set[str]:
    """URLs that MMPretrain's zoo has for one of its configs."""
    import mmpretrain

    zoo = Path(mmpretrain.__file__).parent / '.mim' / 'configs'
    folder, _, stem = model_cfg.partition('/')
    models = load(zoo / folder / 'metafile.yml')['Models']
    return {
        model['Weights']
        for model in models
        if model['Config'] == f'configs/{folder}/{stem}'
    }


@pytest.mark.parametrize('name', [n for n in PAIRS if n.endswith('in1k')])
def test_imagenet_teacher_has_a_checkpoint_of_the_zoo(name):
    model = read_config(name).model
    scope, _, path = model.teacher.partition('::')
    assert scope == 'mmpretrain'
    assert model.teacher_ckpt in weights_of(path)


@pytest.mark.parametrize('name', CIFAR_PAIRS)
def test_cifar_teacher_is_what_its_own_config_trains(name):
    teacher, *_ = split_name(name)
    cfg, model = read_config(f'{teacher}_cifar100'), read_config(name).model
    # Where tools/train.py leaves the last checkpoint.
    last = f'work_dirs/{teacher}_cifar100/epoch_{cfg.train_cfg.max_epochs}.pth'
    assert model.teacher_ckpt == last
    trained = cfg.model
    trained.backbone.pop('init_cfg')
    model.teacher.backbone.pop('init_cfg', None)
    assert model.teacher == trained
    # They agree about the images.
    pair_cfg = read_config(name)
    assert cfg.data_preprocessor == pair_cfg.data_preprocessor
    for cfg_of in (cfg, pair_cfg):
        cfg_of.val_dataloader.dataset.pop('pipeline')
    assert cfg.val_dataloader == pair_cfg.val_dataloader


@pytest.mark.parametrize(
    ('teacher', 'source'),
    [
        ('swin-t', 'swin_transformer/swin-tiny_16xb64_in1k.py'),
        ('vit-s', 'deit/deit-small_4xb256_in1k.py'),
        ('mixer-b', 'mlp_mixer/mlp-mixer-base-p16_64xb64_in1k.py'),
        ('convnext-t', 'convnext/convnext-tiny_32xb128_in1k.py'),
    ],
)
def test_cifar_teacher_starts_from_a_checkpoint_of_the_zoo(teacher, source):
    backbone = read_config(f'{teacher}_cifar100').model.backbone
    assert backbone.init_cfg.type == 'Pretrained'
    assert backbone.init_cfg.checkpoint in weights_of(source)
    # The backbone is the one of that checkpoint.
    init_default_scope('mmpretrain')
    ours = build_model(read_config(f'{teacher}_cifar100').model, 'teacher')
    theirs = build_model(f'mmpretrain::{source}', 'teacher')
    assert shapes(ours.backbone) == shapes(theirs.backbone)


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}


# ------------------------------------------------------------------- sizes


#: A pair of each student and width of the heads.
SIZES = (
    'swin-t_resnet18_cifar100',
    'vit-s_resnet18_cifar100',
    'vit-s_mobilenetv2_cifar100',
    'convnext-t_deit-t_cifar100',
    'convnext-t_swin-p_cifar100',
    'swin-t_resmlp-s12_cifar100',
    'deit-t_resnet18_in1k',
    'swin-t_resnet18_in1k',
    'deit-t_mobilenetv2_in1k',
    'resnet50_deit-t_in1k',
    'resnet50_swin-n_in1k',
    'resnet50_resmlp-s12_in1k',
)


@pytest.mark.parametrize('name', SIZES)
def test_student_and_heads_have_the_published_sizes(name, build_pair):
    cfg, expected = read_config(name), PAIRS[name]
    _, student, classes = split_name(name)
    model = build_pair(cfg)
    count, width = STUDENTS[student]
    without = (1000 - classes) * (width + 1)
    assert parameters(model.architecture) == count - without
    heads = model.distiller.connectors['heads']
    if expected['heads']:
        assert parameters(heads) == expected['heads']
    elif student == 'swin-p':
        assert parameters(heads) == token_heads(
            384, [(48, 3), (96, 2), (192, 1), (384, 0)], classes
        )
    else:
        assert parameters(heads) == token_heads(384, [(384, 1)] * 4, classes)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def token_heads(d: int, stages: list[tuple[int, int]], classes: int) -> int:
    """The closed form of a token student's heads.

    Args:
        d (int): The student's last width.
        stages (list[tuple[int, int]]): Width and merges of each stage.
        classes (int): Classes.
    """
    total = 0
    for index, (width, merges) in enumerate(stages, start=1):
        for _ in range(merges):
            total += 8 * width + 4 * width * d
            width = d
        # Two norms; qkv without bias, projection; an MLP of 4 d.
        block = 4 * d + 3 * d * d + (d * d + d) + (8 * d * d + 5 * d)
        total += max(4 - index, 1) * block + (d + 1) * classes
    return total


# ----------------------------------------------------------- one real step


@every_config
def test_losses_reach_student_and_heads(name, first_losses, outweighing):
    cfg, expected = read_config(name), PAIRS[name]
    *_, classes = split_name(name)
    model, losses = first_losses(cfg)
    assert not outweighing(losses)
    assert set(losses) == {
        'student.loss',
        'distill.loss_kd',
        'distill.loss_ofa',
    }
    if expected['eps'] == 1:
        # The cross-entropy of four heads that know nothing yet.
        assert losses['distill.loss_ofa'].item() == pytest.approx(
            4 * math.log(classes) * expected['weight'], rel=0.3
        )
    total, _ = model.parse_losses(losses)
    total.backward()
    for key, param in model.named_parameters():
        assert param.grad is not None, key
        assert torch.isfinite(param.grad).all(), key
    assert all(p.grad is None for p in teachers_of(model))


def teachers_of(model: nn.Module):
    return model.teacher.model.parameters()


#: Every recipe with every student.
TRAINED = (
    'vit-s_resnet18_cifar100',
    'swin-t_mobilenetv2_cifar100',
    'convnext-t_deit-t_cifar100',
    'convnext-t_swin-p_cifar100',
    'swin-t_resmlp-s12_cifar100',
    'deit-t_resnet18_in1k',
    'deit-t_mobilenetv2_in1k',
    'resnet50_deit-t_in1k',
    'resnet50_swin-n_in1k',
    'swin-t_resmlp-s12_in1k',
)


@pytest.mark.parametrize('name', TRAINED)
def test_one_training_step(name, train_one_step):
    expected = PAIRS[name]
    run = train_one_step(read_config(name))
    model, losses = run.runner.model, run.losses
    assert all(map(math.isfinite, losses.values()))
    assert losses.pop('loss') == pytest.approx(sum(losses.values()), rel=1e-5)

    changed = {key.rpartition('.')[0] for key in run.changed}
    first, *_, final = (
        key.rpartition('.')[0]
        for key, _ in model.architecture.named_parameters(
            prefix='architecture'
        )
    )
    assert {first, final} <= changed
    heads = {
        key.rpartition('.')[0]
        for key in run.before
        if key.startswith('distiller.connectors.heads')
    }
    assert heads <= changed

    mixes = model.data_preprocessor.batch_augments is not None
    assert mixes == expected['recipe']['strong']
    averaged = [hook for hook in run.runner.hooks if isinstance(hook, EMAHook)]
    assert len(averaged) == bool(expected['recipe']['ema'])
    for hook in averaged:
        assert hook.ema_model.momentum == pytest.approx(4e-5)

    del run, model
    gc.collect()


# ------------------------------------------------------ teachers on CIFAR

#: The same classes of networks, small, and the width of what they return.
SMALL = {
    'swin-t': (dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4), 64),
    'vit-s': (
        dict(
            embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=16
        ),
        16,
    ),
    'mixer-b': (
        dict(
            embed_dims=16,
            num_layers=4,
            tokens_mlp_dims=16,
            channels_mlp_dims=16,
        ),
        16,
    ),
    'convnext-t': (dict(depths=[1] * 4, channels=[8] * 4), 8),
}


def shrink_teacher(model: dict, teacher: str) -> None:
    arch, width = SMALL[teacher]
    model['backbone']['arch'] = arch
    model['head']['in_channels'] = width


def finetuning(teacher: str, checkpoint: Path, shrink, work_dir) -> Config:
    cfg = read_config(f'{teacher}_cifar100')
    shrink(cfg)
    shrink_teacher(cfg.model, teacher)
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'{work_dir.parent.name}_{teacher}'
    return cfg


@pytest.mark.parametrize('teacher', CIFAR_TEACHERS)
def test_teacher_is_tuned_and_then_taken_by_its_pair(
    teacher, shrink, tmp_path
):
    work_dir = tmp_path / 'work_dirs' / f'{teacher}_cifar100'
    checkpoint = tmp_path / 'imagenet.pth'
    cfg = finetuning(teacher, checkpoint, shrink, work_dir)
    init_default_scope('mmpretrain')
    source = copy.deepcopy(cfg.model)
    source.head.num_classes = 1000
    source.backbone.pop('init_cfg')
    source = build_model(source, 'teacher')
    for param in source.parameters():
        nn.init.normal_(param, std=0.02)
    torch.save(dict(state_dict=source.state_dict(), meta={}), checkpoint)

    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = []
    cfg.optim_wrapper.optimizer.lr = 0.0
    runner = Runner.from_cfg(cfg)
    runner.train()
    tuned = runner.model
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(tuned.backbone.state_dict()[key], value), key
    assert runner.message_hub.get_scalar('val/accuracy/top1').current() >= 0

    pair_cfg = read_config(
        next(n for n in PAIRS if n.startswith(teacher) and n in CIFAR_PAIRS)
    )
    shrink(pair_cfg)
    shrink_teacher(pair_cfg.model.teacher, teacher)
    loaded = build_model(pair_cfg.model.teacher, 'teacher')
    load_weights(loaded, str(work_dir / 'epoch_1.pth'))
    for key, value in tuned.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not (work_dir / 'student.pth').exists()


def test_checkpoint_without_a_backbone_is_refused(shrink, tmp_path):
    checkpoint = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'layers.0.weight': torch.ones(1)}), checkpoint)
    cfg = finetuning('swin-t', checkpoint, shrink, tmp_path / 'run')
    runner = Runner.from_cfg(cfg)
    with pytest.raises(AssertionError, match='backbone. is not in the pretr'):
        runner.train()


# ------------------------------------------------- the student of timm


def resmlp() -> dict:
    student = read_config('swin-t_resmlp-s12_cifar100').model.architecture
    student.backbone.img_size = 32
    return student


def test_resmlp_is_timms_and_pooled_after_its_last_block():
    init_default_scope('mmpretrain')
    model = build_model(resmlp(), 'student').eval()
    import timm

    whole = timm.create_model('resmlp_12_224', img_size=32, num_classes=100)
    weights = model.backbone.timm_model.model.state_dict()
    keys = whole.load_state_dict(weights, strict=False)
    assert keys.unexpected_keys == []
    assert {key.partition('.')[0] for key in keys.missing_keys} == {
        'norm',
        'head',
    }
    with torch.no_grad():
        whole.head.weight.copy_(model.head.fc.weight)
        whole.head.bias.copy_(model.head.fc.bias)
    images = torch.rand(2, 3, 32, 32)
    # timm's last scale and shift start as the identity.
    torch.testing.assert_close(model(images, mode='tensor'), whole(images))


def test_resmlp_is_exported_and_tuned_on_other_classes(tmp_path):
    from mmpretrain import get_model

    init_default_scope('mmpretrain')
    student = resmlp()
    trained = build_model(student, 'student')
    state = {f'architecture.{k}': v for k, v in trained.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'epoch_300.pth')
    cfg = Config(dict(model=dict(architecture=student)))
    out = export_student(
        tmp_path / 'epoch_300.pth', tmp_path / 'student.pth', cfg=cfg
    )
    plain = get_model(str(out.with_suffix('.py')), pretrained=str(out))
    torch.testing.assert_close(plain.state_dict(), trained.state_dict())

    tuned = resmlp()
    tuned.head.num_classes = 7
    tuned.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(out), prefix='backbone.'
    )
    tuned = build_model(tuned, 'student')
    tuned.init_weights()
    torch.testing.assert_close(
        tuned.backbone.state_dict(), trained.backbone.state_dict()
    )
    assert tuned.head.fc.out_features == 7
