"""Every config of TAS: OFA-KD's recipe, its directions, and one step."""

import copy
import gc
import math
import re
from functools import cache
from pathlib import Path

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.hooks import EMAHook
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmcakd.engine.hooks import AssistantAccuracyHook

CONFIGS = Path(__file__).parents[2] / 'configs'

#: Whose early stages the assistant has: the student's, but for a CNN that
#: teaches a network of tokens. Top-1 of the paper, where it is known.
PAIRS = {
    'swin-t_resnet18_cifar100': ('student', 81.61),
    'vit-s_resnet18_cifar100': ('student', 81.93),
    'mixer-b_resnet18_cifar100': ('student', None),
    'swin-t_mobilenetv2_cifar100': ('student', None),
    'vit-s_mobilenetv2_cifar100': ('student', 82.10),
    'mixer-b_mobilenetv2_cifar100': ('student', None),
    'convnext-t_deit-t_cifar100': ('teacher', 79.57),
    'mixer-b_deit-t_cifar100': ('student', None),
    'convnext-t_swin-p_cifar100': ('teacher', 80.73),
    'mixer-b_swin-p_cifar100': ('student', None),
    'convnext-t_resmlp-s12_cifar100': ('teacher', 78.03),
    'swin-t_resmlp-s12_cifar100': ('student', None),
    'deit-t_resnet18_in1k': ('student', None),
    'swin-t_resnet18_in1k': ('student', 72.21),
    'mixer-b_resnet18_in1k': ('student', None),
    'deit-t_mobilenetv2_in1k': ('student', None),
    'swin-t_mobilenetv2_in1k': ('student', 72.54),
    'mixer-b_mobilenetv2_in1k': ('student', None),
    'resnet50_deit-t_in1k': ('teacher', None),
    'convnext-t_deit-t_in1k': ('teacher', 75.26),
    'mixer-b_deit-t_in1k': ('student', None),
    'resnet50_swin-n_in1k': ('teacher', 77.79),
    'convnext-t_swin-n_in1k': ('teacher', None),
    'mixer-b_swin-n_in1k': ('student', None),
    'resnet50_resmlp-s12_in1k': ('teacher', None),
    'convnext-t_resmlp-s12_in1k': ('teacher', None),
    'swin-t_resmlp-s12_in1k': ('student', None),
}
#: One of each recipe.
RECIPES = (
    'swin-t_resnet18_cifar100',
    'convnext-t_swin-p_cifar100',
    'deit-t_mobilenetv2_in1k',
    'resnet50_deit-t_in1k',
)
TEMPERATURES = {
    f'distiller.distill_losses.loss_nce_{pair}.logit_scale'
    for pair in ('teacher_student', 'teacher_assistant', 'assistant_student')
}

every_config = pytest.mark.parametrize('name', PAIRS)


@cache
def parse(path: Path) -> Config:
    return Config.fromfile(path)


def read_config(name: str, folder: str = 'tas') -> Config:
    return copy.deepcopy(parse(CONFIGS / folder / f'{name}.py'))


def test_pairs_are_those_of_ofakd():
    found = {path.stem for path in (CONFIGS / 'tas').glob('*.py')}
    assert found == set(PAIRS)
    assert found == {path.stem for path in (CONFIGS / 'ofakd').glob('*.py')}


@every_config
def test_recipe_is_the_one_of_ofakd(name):
    ours = read_config(name).to_dict()
    theirs = read_config(name, 'ofakd').to_dict()
    method = parse(CONFIGS / '_base_' / 'methods' / 'tas.py').to_dict()
    assert ours['model'].pop('distiller') == method['distiller']
    assert ours.pop('distiller') == method['distiller']
    theirs['model'].pop('distiller')
    theirs.pop('distiller')
    hook = ours['default_hooks'].pop('assistant')
    assert hook == dict(type='mmcakd.AssistantAccuracyHook')
    keys = ours['optim_wrapper']['paramwise_cfg']['custom_keys']
    assert keys.pop('loss_nce') == dict(decay_mult=0.0)
    theirs['optim_wrapper']['paramwise_cfg'].setdefault('custom_keys', {})
    assert ours == theirs


@pytest.mark.parametrize('name', RECIPES[::3])
def test_dumping_and_reading_again_changes_nothing(name, tmp_path):
    cfg = read_config(name)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


# --------------------------------------------------------------- documents


def test_documents_list_every_config():
    folder = CONFIGS / 'tas'
    readme = (folder / 'README.md').read_text('utf-8')
    models = load(folder / 'metafile.yml')['Models']
    others = load(CONFIGS / 'ofakd' / 'metafile.yml')['Models']
    others = {model['Name'].removeprefix('ofakd_'): model for model in others}
    assert {model['Name'] for model in models} == {
        f'tas_{name}' for name in PAIRS
    }
    for model in models:
        name = model['Name'].removeprefix('tas_')
        first, top1 = PAIRS[name]
        assert model['Config'] == f'configs/tas/{name}.py'
        # Same student, same recipe.
        source = model['Metadata'].pop('Results From', None)
        others[name]['Metadata'].pop('Results From')
        assert model['Metadata'] == others[name]['Metadata']
        assert bool(source) is bool(top1)
        (row,) = (
            line for line in readme.splitlines() if f'({name}.py)' in line
        )
        cells = [cell.strip() for cell in row.strip('|').split('|')]
        assert cells[-3] == first
        assert cells[-2] == (f'{top1:.2f}' if top1 else '-')
        # The other figures are quoted as they are for OFA-KD.
        (result,) = others[name]['Results']
        ofakd = f'{result["Metrics"]["Top 1 Accuracy"]:.2f}'
        assert cells[-4].removesuffix(' \\*') == ofakd
        if top1:
            (result,) = model['Results']
            assert result['Metrics'] == {'Top 1 Accuracy': top1}
        else:
            assert 'Results' not in model


def test_configs_in_the_readme_are_complete(build_pair, shrink, tmp_path):
    readme = (CONFIGS / 'tas' / 'README.md').read_text('utf-8')
    codes = re.findall(r'```python\n(.*?)```', readme, re.DOTALL)
    whole, options, no_labels = (
        Config.fromfile(write(tmp_path / f'config_{index}.py', code))
        for index, code in enumerate(codes)
    )
    complete = read_config('vit-s_resnet18_cifar100').to_dict()
    assert whole.to_dict() == complete

    shrink(options)
    model = build_pair(options)
    assistant = model.distiller.connectors['assistant']
    assert assistant.first == 'teacher'
    assert assistant.projector.block.attn.w_msa.num_heads == 8
    losses = model.distiller.distill_losses
    for loss in ('loss_nce_assistant_student', 'loss_ofa_assistant_student'):
        assert not losses[loss].detach_teacher
    gathered = {name for name in losses if getattr(losses[name], 'gather', 0)}
    assert gathered == {'loss_nce_teacher_student'}
    assert losses['loss_nce_teacher_student'].symmetric
    assert losses['loss_ofa_teacher_student'].eps == [1.2]

    shrink(no_labels)
    losses = build_pair(no_labels).distiller.distill_losses
    assert len(losses) == 6 and 'loss_assistant' not in losses


def test_distiller_of_the_guide_takes_a_step(tiny, tmp_path):
    guide = (CONFIGS.parent / 'docs' / 'guide.md').read_text('utf-8')
    (code,) = (
        code
        for code in re.findall(r'```python\n(.*?)```', guide, re.DOTALL)
        if 'AssistantConnector' in code
    )
    cfg = Config.fromfile(write(tmp_path / 'run.py', code))
    model = tiny.build_distillation(distiller=cfg.distiller)
    losses = model(*tiny.batch(4), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(p.grad is not None for p in model.parameters())
    # Not the teacher: the assistant is drawn to the student.
    own = list(model.distiller.connectors['assistant'].parameters())
    loss = model(*tiny.batch(4), mode='loss')['distill.loss_logits']
    assert all(grads(loss, own))
    (key,) = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert any(key in name for name, _ in model.named_parameters())


def write(path: Path, code: str) -> Path:
    """Write a config that lies in configs/tas elsewhere."""
    code = code.replace("'./", f"'{CONFIGS}/tas/")
    path.write_text(code.replace("'../", f"'{CONFIGS}/"))
    return path


# ------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ('name', 'channels', 'stride', 'width', 'grid', 'num_heads'),
    [
        ('swin-t_resnet18_cifar100', 256, 2, 768, 7, 24),
        ('vit-s_resnet18_cifar100', 256, 1, 384, 14, 6),
        ('mixer-b_mobilenetv2_cifar100', 96, 1, 768, 14, 24),
        ('convnext-t_deit-t_cifar100', 384, 1, 192, 14, 3),
        ('resnet50_swin-n_in1k', 1024, 2, 512, 7, 16),
        ('convnext-t_resmlp-s12_cifar100', 384, 1, 384, 14, 12),
    ],
)
def test_projector_has_its_size(
    name, channels, stride, width, grid, num_heads, build_pair
):
    connectors = build_pair(read_config(name)).distiller.connectors
    assistant = connectors['assistant']
    project = assistant.projector
    assert project.stride == (stride, stride)
    attention = project.block.attn
    assert (attention.window_size, attention.shift_size) == (7, 0)
    assert attention.w_msa.num_heads == num_heads
    assert assistant.receiver.grid == (grid, grid)
    tokens = project(torch.rand(1, channels, 14, 14), (grid, grid))
    assert tokens.shape == (1, grid**2, width)
    # A patch embedding with its norm; two norms, queries, keys, values and
    # output, an MLP four times as wide, and a bias for each offset.
    patches = channels * stride**2 * width + 3 * width
    attend = 4 * width**2 + 4 * width + 13**2 * num_heads
    mlp = 8 * width**2 + 5 * width
    assert parameters(project) == patches + attend + mlp + 4 * width
    # It is all that the assistant has of its own.
    assert parameters(assistant) == parameters(project)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ----------------------------------------------------------- one real step


def grads(loss: torch.Tensor, params: list) -> list[bool]:
    """Whether a loss reaches each of some parameters."""
    found = torch.autograd.grad(
        loss, params, retain_graph=True, allow_unused=True
    )
    return [grad is not None and bool(grad.any()) for grad in found]


@every_config
def test_losses_reach_student_and_assistant(name, first_losses, outweighing):
    cfg, (first, _) = read_config(name), PAIRS[name]
    model, losses = first_losses(cfg)
    assert not outweighing(losses)
    assert set(losses) == {'student.loss'} | {
        f'distill.{name}' for name in cfg.distiller.distill_losses
    }
    # The cross-entropy of a student and an assistant that know nothing yet.
    log_classes = math.log(cfg.model.architecture.head.num_classes)
    for key in ('teacher_student', 'teacher_assistant', 'assistant_student'):
        loss = losses[f'distill.loss_ofa_{key}'].item()
        assert loss == pytest.approx(log_classes, rel=0.3)
    loss = losses['distill.loss_assistant']
    assert loss.item() == pytest.approx(log_classes, rel=0.3)

    # What it learns reaches the student where the student is a part of it.
    assistant = model.distiller.connectors['assistant']
    assert assistant.first == first
    weights = [
        param
        for key, param in model.architecture.named_parameters()
        if key.endswith('weight')
    ]
    reached = grads(loss, [weights[0], weights[-1]])
    assert reached == [first == 'student', first == 'teacher']
    # The student learns from it, and it not from the student.
    own = list(assistant.projector.parameters())
    for kind in ('nce', 'ofa'):
        copied = losses[f'distill.loss_{kind}_assistant_student']
        assert grads(copied, weights[:1]) == [True]
        assert not any(grads(copied, own))

    total, _ = model.parse_losses(losses)
    total.backward()
    for key, param in model.named_parameters():
        assert param.grad is not None, key
        assert torch.isfinite(param.grad).all(), key
    assert all(p.grad is None for p in model.teacher.model.parameters())


@pytest.mark.parametrize('name', RECIPES)
def test_one_training_step(name, train_one_step):
    cfg = read_config(name)
    mixes = 'augments' in cfg.model.architecture.get('train_cfg', {})
    averages = name.endswith('deit-t_in1k')
    # The small ImageNet has images to train on alone.
    on_imagenet = cfg.val_dataloader.dataset.type == 'ImageNet'
    cfg.val_dataloader.dataset.split = 'train' if on_imagenet else 'test'
    cfg.default_hooks.logger.interval = 1
    run = train_one_step(cfg, validate=True)
    model, losses = run.runner.model, run.losses
    assert all(map(math.isfinite, losses.values()))
    assert losses.pop('loss') == pytest.approx(sum(losses.values()), rel=1e-5)
    assert (model.data_preprocessor.batch_augments is not None) == mixes

    projector = 'distiller.connectors.assistant.projector.'
    own = {key for key in run.before if key.startswith(projector)}
    assert own and TEMPERATURES | own <= run.changed
    # Of those between, a residual block's own last norm may start at zero,
    # which keeps what is in front of it from moving in the first step.
    params = [key for key, _ in model.architecture.named_parameters()]
    ends = {f'architecture.{params[0]}', f'architecture.{params[-1]}'}
    assert ends <= run.changed

    averaged = [hook for hook in run.runner.hooks if isinstance(hook, EMAHook)]
    assert len(averaged) == averages
    for hook in averaged:
        assert hook.ema_model.momentum == pytest.approx(4e-5)
        kept = {key for key, _ in hook.ema_model.module.named_parameters()}
        assert kept == run.before
    assert any(isinstance(h, AssistantAccuracyHook) for h in run.runner.hooks)
    for key in ('accuracy/top1', 'assistant/accuracy/top1'):
        value = run.runner.message_hub.get_scalar(f'val/{key}').current()
        assert value in (0, 50, 100)
    check_weight_decay(run.runner, cfg)

    del run, model, averaged
    gc.collect()


def check_weight_decay(runner, cfg: Config) -> None:
    """Compare the optimizer with one of the pair's own recipe."""
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    wrapper.paramwise_cfg.custom_keys.pop('loss_nce')
    recipe = build_optim_wrapper(runner.model, wrapper).optimizer
    theirs, ours = (
        weight_decays(optimizer, runner.model)
        for optimizer in (recipe, runner.optim_wrapper.optimizer)
    )
    assert set(theirs.values()) == {
        0,
        cfg.optim_wrapper.optimizer.weight_decay,
    }
    assert ours == theirs | dict.fromkeys(TEMPERATURES, 0)
    own = {key for key in ours if key.endswith('projection.weight')}
    assert own
    assert {ours[key] for key in own} == {wrapper.optimizer.weight_decay}


def weight_decays(optimizer, model: nn.Module) -> dict[str, float]:
    names = {id(param): key for key, param in model.named_parameters()}
    decays = {
        names[id(param)]: group['weight_decay']
        for group in optimizer.param_groups
        for param in group['params']
    }
    assert set(decays) == set(names.values())
    return decays
