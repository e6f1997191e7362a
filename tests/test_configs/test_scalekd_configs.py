"""Every config of ScaleKD: its recipe, and one real training step."""

import copy
import gc
import math
from functools import cache
from pathlib import Path

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from mmcakd.models.teachers import build_model

CONFIGS = Path(__file__).parents[2] / 'configs' / 'scalekd'

STEP = dict(
    optimizer='SGD', lr=0.1, weight_decay=1e-4, warmup=0, epochs=100,
    batch=256, clip=None, ema=None, randaug=None, erase=None,
    decays_norms=True,
)  # fmt: skip
LAMB = dict(
    optimizer='Lamb', lr=5e-3, weight_decay=0.02, warmup=5, epochs=300,
    batch=2048, clip=5.0, ema=None, randaug=(7, 8), erase=0.25,
    decays_norms=True,
)  # fmt: skip
ADAMW = dict(
    optimizer='AdamW', lr=1e-3, weight_decay=0.05, warmup=20, epochs=300,
    batch=1024, clip=5.0, ema=1e-4, randaug=(9, 10), erase=0.25,
    decays_norms=False,
)  # fmt: skip
MIXER = dict(
    optimizer='AdamW', lr=7e-4, weight_decay=0.067, warmup=20, epochs=300,
    batch=1536, clip=1.0, ema=None, randaug=(12, 15), erase=0.25,
    decays_norms=True,
)  # fmt: skip

SWIN_S = ('swin-small', 'swin_small_patch4_window7_224-')
SWIN_B = ('swin-base', 'swin_base_patch4_window7_224_22kto1k-')
SWIN_L = ('swin-large', 'swin_large_patch4_window7_224_22kto1k-')
BEIT_L = ('BEiTViT', 'eva-l-p14_mim-in21k-pre_3rdparty_in1k-196px')
DEIT_B = ('deit-base', 'deit-base_3rdparty')

# Channels and side of the maps of stage 3 and stage 4.
S_TEACHER = ((384, 14), (768, 7))
B_TEACHER = ((512, 14), (1024, 7))
L_TEACHER = ((768, 14), (1536, 7))
BEIT_TEACHER = ((1024, 16), (1024, 16))
VIT_B16 = ((768, 14), (768, 14))
RESNET50 = ((1024, 14), (2048, 7))
MOBILENET = ((512, 14), (1024, 7))
TINY = ((384, 14), (768, 7))
VIT_B14 = ((768, 16), (768, 16))

# original and frequency view of stage 3, then of stage 4
SWIN_WEIGHTS = (0.08, 0.06, 0.08, 0.06)
BEIT_WEIGHTS = (0.016, 0.008, 0.016, 0.008)


def pair(recipe, teacher, maps, heads, kappa=5.0, weights=SWIN_WEIGHTS, **kw):
    """Describe a config; ``maps`` are the student's, then the teacher's."""
    return dict(
        recipe=recipe, teacher=teacher, maps=maps, heads=heads, kappa=kappa,
        weights=weights, kd=0.5, norm='BN', cap_parameters=None,
    ) | kw  # fmt: skip


SWIN_L_RESNET50 = pair(
    LAMB, SWIN_L, (RESNET50, L_TEACHER), (16, 24),
    cap_parameters=(17_861_632, 70_117_376),
)  # fmt: skip
SWIN_L_MOBILENET = pair(
    LAMB | dict(lr=2e-3, weight_decay=0.004, clip=None, erase=None),
    SWIN_L, (MOBILENET, L_TEACHER), (16, 24),
    cap_parameters=(9_895_424, 38_606_848),
)  # fmt: skip

#: The figures of the paper and of its public code.
PAIRS = {
    # advanced
    'swin-l_mobilenetv1': SWIN_L_MOBILENET,
    'swin-l_resnet50': SWIN_L_RESNET50,
    'swin-l_convnext-t': pair(
        ADAMW | dict(clip=None), SWIN_L, (TINY, L_TEACHER), (8, 16),
        kappa=1.0, norm='LN2d',
    ),
    'swin-l_mixer-s': pair(
        MIXER, SWIN_L, (((512, 14), (512, 14)), L_TEACHER), (8, 8)
    ),
    'swin-l_mixer-b': pair(MIXER, SWIN_L, (VIT_B16, L_TEACHER), (8, 8)),
    'swin-l_vit-s': pair(
        ADAMW, SWIN_L, (((384, 14), (384, 14)), L_TEACHER), (8, 8)
    ),
    'swin-l_swin-t': pair(
        ADAMW, SWIN_L, (TINY, L_TEACHER), (24, 48), kappa=1.0, norm='LN2d'
    ),
    'swin-l_vit-b': pair(ADAMW, SWIN_L, (VIT_B16, L_TEACHER), (8, 8)),
    'beit-l_resnet50': pair(
        LAMB, BEIT_L, (RESNET50, BEIT_TEACHER), (8, 8),
        kappa=0.2, weights=BEIT_WEIGHTS,
    ),
    'beit-l_mixer-b14': pair(
        MIXER, BEIT_L, (VIT_B14, BEIT_TEACHER), (8, 8),
        kappa=1.0, weights=BEIT_WEIGHTS,
    ),
    'beit-l_vit-b14': pair(
        ADAMW | dict(ema=None), BEIT_L, (VIT_B14, BEIT_TEACHER), (8, 8),
        kappa=1.0, weights=BEIT_WEIGHTS,
    ),
    # traditional
    'swin-s_resnet50_traditional': pair(
        STEP, SWIN_S, (RESNET50, S_TEACHER), (3, 6),
        weights=(0.08, 0.06, 0.08, None), kd=None,
    ),
    'swin-b_resnet50_traditional': pair(
        STEP, SWIN_B, (RESNET50, B_TEACHER), (8, 16),
        cap_parameters=(13_679_616, 53_596_160),
    ),
    'swin-l_resnet50_traditional': SWIN_L_RESNET50 | dict(recipe=STEP),
    'swin-l_mobilenetv1_traditional': SWIN_L_MOBILENET | dict(recipe=STEP),
    # more epochs, and a pair of our own
    'swin-l_resnet50_600e': SWIN_L_RESNET50
    | dict(recipe=LAMB | dict(epochs=600)),
    'vit-b_resnet18': pair(
        STEP, DEIT_B, (((256, 14), (512, 7)), VIT_B16), (12, 12),
        kappa=1.0,
    ),
}  # fmt: skip
VIEWS = ('s3_original', 's3_frequency', 's4_original', 's4_frequency')

every_config = pytest.mark.parametrize('name', PAIRS)


@cache
def parse(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}_in1k.py')


def read_config(name: str) -> Config:
    return copy.deepcopy(parse(name))


def test_the_published_pairs_and_no_others_have_configs():
    files = {path.stem.removesuffix('_in1k') for path in CONFIGS.glob('*.py')}
    assert files == set(PAIRS)


@every_config
def test_dumping_and_reading_again_changes_nothing(name, tmp_path):
    cfg = read_config(name)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


@every_config
def test_recipe_is_the_published_one(name):
    cfg, expected = read_config(name), PAIRS[name]['recipe']
    pipeline = {
        step.type: step for step in cfg.train_dataloader.dataset.pipeline
    }
    schedulers = cfg.param_scheduler
    warmups = [
        s for s in schedulers if isinstance(s, dict) and s.type == 'LinearLR'
    ]
    ema = [h for h in cfg.get('custom_hooks', []) if h.type == 'EMAHook']
    optim = cfg.optim_wrapper
    randaug = pipeline.get('RandAugment')
    clip = optim.get('clip_grad')
    found = dict(
        optimizer=optim.optimizer.type,
        lr=optim.optimizer.lr,
        weight_decay=optim.optimizer.weight_decay,
        warmup=warmups[0].end if warmups else 0,
        epochs=cfg.train_cfg.max_epochs,
        batch=8 * cfg.train_dataloader.batch_size,
        clip=clip and clip.max_norm,
        ema=ema[0].momentum if ema else None,
        randaug=randaug
        and (randaug['magnitude_level'], randaug['total_level']),
        erase=pipeline.get('RandomErasing', {}).get('erase_prob'),
        decays_norms=optim.get('paramwise_cfg', {}).get('norm_decay_mult', 1)
        == 1,
    )
    assert found == expected
    if randaug:
        assert randaug.policies == 'timm_increasing'
        assert (randaug.num_policies, randaug.magnitude_std) == (2, 0.5)
    assert cfg.auto_scale_lr.base_batch_size == expected['batch']
    # Neither Mixup nor CutMix.
    assert not cfg.model.architecture.get('train_cfg')


@every_config
def test_learning_rate_falls_over_all_epochs(name):
    cfg = read_config(name)
    epochs = cfg.train_cfg.max_epochs
    if name.endswith('resnet50_traditional') or name == 'vit-b_resnet18':
        assert cfg.param_scheduler.milestones == [30, 60, 90]
        return
    schedulers = cfg.param_scheduler
    cosine = schedulers[-1] if isinstance(schedulers, list) else schedulers
    assert cosine.type == 'CosineAnnealingLR'
    assert cosine.get('T_max', epochs) == epochs
    assert cosine.get('end', epochs) == epochs


MIXERS = [name for name in PAIRS if 'mixer' in name]


@pytest.mark.parametrize('name', MIXERS)
def test_mixers_learn_from_1e_6_up_and_down_to_zero(name, learning_rates):
    rates = learning_rates(read_config(name))
    assert rates[0][0] == pytest.approx(1e-6)
    assert rates[20][0] == max(map(max, rates)) == pytest.approx(7e-4)
    half = 7e-4 / 2 * (1 + math.cos(math.pi * 140 / 280))
    assert rates[160][0] == pytest.approx(half)
    assert rates[-1][0] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize('name', MIXERS)
def test_all_parameters_of_a_mixer_decay(name):
    cfg = read_config(name)
    init_default_scope('mmpretrain')
    student = build_model(cfg.model.architecture, 'student')
    optim = build_optim_wrapper(student, cfg.optim_wrapper)
    decays = {group['weight_decay'] for group in optim.optimizer.param_groups}
    assert decays == {0.067}


@pytest.mark.parametrize('teacher', ['swin-s', 'swin-b', 'swin-l'])
def test_batch_norm_is_synchronised_in_the_student_alone(teacher, build_pair):
    cfg = read_config(f'{teacher}_resnet50_traditional')
    # The runner would convert the projectors, too.
    assert 'sync_bn' not in cfg
    model = build_pair(cfg)
    kinds = {
        whose: {
            type(module).__name__
            for module in part.modules()
            if isinstance(module, _BatchNorm)
        }
        for whose, part in (
            ('student', model.student),
            ('distiller', model.distiller),
        )
    }
    assert kinds == dict(student={'SyncBatchNorm'}, distiller={'BatchNorm2d'})


@every_config
def test_method_is_the_published_one(name):
    cfg, expected = read_config(name), PAIRS[name]
    distiller = cfg.model.distiller
    heads = dict(zip(('s3', 's4'), expected['heads'], strict=True))
    for view, weight in zip(VIEWS, expected['weights'], strict=True):
        if weight is None:
            assert view not in distiller.connectors
            assert f'loss_{view}' not in distiller.distill_losses
            continue
        connector = distiller.connectors[view]
        assert connector.num_heads == heads[view[:2]]
        assert connector.kappa == expected['kappa']
        norm_cfg = connector.get('norm_cfg', dict(type='BN'))
        assert norm_cfg['type'] == expected['norm']
        loss = distiller.distill_losses[f'loss_{view}']
        assert loss.loss_weight == weight
        # Nothing but a grid that is not the published 7x7 makes a difference.
        is_sum = expected['weights'] == BEIT_WEIGHTS
        assert loss.per_position == (not is_sum)
        assert loss.view == view[3:]
    if expected['kd']:
        assert distiller.distill_losses.loss_kd.loss_weight == expected['kd']
        assert cfg.model.student_loss_weight == 1 - expected['kd']
    else:
        assert 'loss_kd' not in distiller.distill_losses
        assert cfg.model.student_loss_weight == 1


@every_config
def test_teacher_has_the_checkpoint_of_its_architecture(name):
    cfg = read_config(name)
    architecture, checkpoint = PAIRS[name]['teacher']
    teacher = cfg.model.teacher
    if not isinstance(teacher, str):
        teacher = teacher.backbone.type
    assert architecture in teacher
    assert cfg.model.teacher_ckpt.startswith('https://download.openmmlab.com')
    assert checkpoint in cfg.model.teacher_ckpt


def test_student_of_the_bce_recipe_sums_over_classes():
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    head_cfg = read_config('swin-l_resnet50').model.architecture.head
    head = MODELS.build(head_cfg).eval()
    torch.nn.init.zeros_(head.fc.weight)
    torch.nn.init.zeros_(head.fc.bias)
    samples = [DataSample().set_gt_label(label) for label in (1, 7)]
    loss = head.loss((torch.rand(2, 2048),), samples)['loss']
    assert loss.item() == pytest.approx(1000 * math.log(2))


# ----------------------------------------------------------- one real step


class OneStep(Hook):
    """Keep the logged losses and stop after the first epoch, of one step."""

    losses: dict[str, torch.Tensor]

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses = outputs
        runner.train_loop.stop_training = True


def run_one_step(name: str, data_root: Path, work_dir: Path):
    cfg = read_config(name)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'{work_dir.name}_{name}'
    cfg.model.teacher_ckpt = 'random'
    cfg.train_dataloader.update(batch_size=2, num_workers=0)
    cfg.train_dataloader.dataset.data_root = str(data_root)
    for key in ('cfg', 'dataloader', 'evaluator'):
        cfg[f'val_{key}'] = cfg[f'test_{key}'] = None
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
    return runner, step.losses, before


@pytest.mark.parametrize(
    'name', [name for name in PAIRS if not name.endswith('_600e')]
)
def test_one_training_step_at_real_shapes(
    name, imagenet_root, outweighing, tmp_path
):
    expected = PAIRS[name]
    runner, losses, before = run_one_step(name, imagenet_root, tmp_path)
    model = runner.model

    assert all(
        torch.isfinite(torch.as_tensor(v)).all() for v in losses.values()
    )
    logged = {key.rpartition('.')[2]: float(v) for key, v in losses.items()}
    (_, teacher_maps) = expected['maps']
    is_sum = expected['weights'] == BEIT_WEIGHTS
    positions = teacher_maps[1][1] ** 2 if is_sum else 49
    for view, weight in zip(VIEWS, expected['weights'], strict=True):
        if weight is None:
            assert f'loss_{view}' not in logged
        else:
            # Zero for equal features, four a position for opposite ones.
            assert 0 < logged[f'loss_{view}'] < 4 * positions * weight
    assert ('loss_kd' in logged) == bool(expected['kd'])
    assert 'student.loss' in losses
    assert not outweighing(losses)

    changed = {
        key.rpartition('.')[0]
        for key, value in model.named_parameters()
        if not torch.equal(value, before[key])
    }
    first, *_, last = (
        key.rpartition('.')[0]
        for key, _ in model.architecture.named_parameters(
            prefix='architecture'
        )
    )
    assert {first, last} <= changed
    # Some start at a standstill: behind a residual branch that begins at 0.
    assert len(changed) > 0.8 * len({k.rpartition('.')[0] for k in before})

    connectors = model.distiller.connectors
    for view, weight in zip(VIEWS, expected['weights'], strict=True):
        if weight is None:
            continue
        prefix = f'distiller.connectors.{view}'
        assert {f'{prefix}.stem.0', f'{prefix}.ffn.2'} <= changed
        found = sum(p.numel() for p in connectors[view].parameters())
        assert found == count_parameters(expected['maps'], view[:2])
        if expected['cap_parameters']:
            assert found == expected['cap_parameters'][view[:2] == 's4']

    del runner, model, before, connectors
    gc.collect()


def count_parameters(maps, stage: str) -> int:
    """The closed form of a projector's parameters."""
    student, teacher = maps
    index = 0 if stage == 's3' else 1
    s, side = student[index]
    t, query_side = teacher[index]
    count = 9 * s**2 + 3 * s + s * side**2 + 2 * s * t + 11 * t**2 + 12 * t
    # Only stage 3 learns its query.
    return count + (query_side**2 * t if stage == 's3' else 0)
