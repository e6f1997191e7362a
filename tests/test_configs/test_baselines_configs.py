"""Every baseline: its published figures, and real steps on tiny pairs."""

import copy
from pathlib import Path

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from mmcakd.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs' / 'baselines'

#: Type and arguments of the losses, as in OFA-KD's comparison.
LOSSES = dict(
    kd=dict(
        loss_kd=dict(
            type='mmcakd.SoftTargetLoss', mode='kl', tau=1, loss_weight=1
        )
    ),
    dkd=dict(loss_kd=dict(type='mmcakd.DKDLoss', alpha=1, beta=2, tau=1)),
    dist=dict(loss_kd=dict(type='mmcakd.DISTLoss', beta=1, gamma=1, tau=1)),
    mld=dict(
        loss_kd=dict(
            type='mmcakd.BinaryTargetLoss', mode='kl', tau=1, loss_weight=1
        )
    ),
    fitnet={f'loss_s{i}': dict(type='mmcakd.MSELoss') for i in (1, 2, 3, 4)},
    cc=dict(loss_cc=dict(type='mmcakd.CCLoss', loss_weight=0.02)),
    rkd=dict(
        loss_rkd=dict(
            type='mmcakd.RKDLoss', distance_weight=25, angle_weight=50
        )
    ),
    crd=dict(
        loss_crd=dict(
            type='mmcakd.CRDLoss',
            embed_dims=128,
            num_negatives=16384,
            temperature=0.07,
            momentum=0.5,
        )
    ),
)
every_method = pytest.mark.parametrize('name', LOSSES)
every_pair = pytest.mark.parametrize(
    'pair', [('vit', 'resnet'), ('resnet', 'vit')], ids='->'.join
)


def read_config(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


def build(tiny, name: str, pair: tuple[str, str], **student):
    teacher, student_name = (getattr(tiny, family)() for family in pair)
    model = tiny.build_distillation(
        architecture=tiny.classifier(student_name, **student),
        teacher=tiny.classifier(teacher),
        distiller=read_config(name).distiller,
        # The random teacher is at odds with the labels.
        student_loss_weight=1e-3,
    )
    # The head of a ViT starts at zero.
    for parameter in model.teacher.model.head.parameters():
        torch.nn.init.normal_(parameter)
    for loss in model.distiller.distill_losses.values():
        if hasattr(loss, 'prepare_from_labels'):
            loss.prepare_from_labels(torch.arange(40) % tiny.classes)
    return model


def indexed_batch(tiny, size: int = 8, **kwargs):
    images, samples = tiny.batch(size, **kwargs)
    for index, sample in enumerate(samples):
        sample.set_metainfo(dict(sample_idx=index))
    return images, samples


def test_every_file_is_a_baseline():
    assert {path.stem for path in CONFIGS.glob('*.py')} == set(LOSSES)


@every_method
def test_a_method_file_defines_the_distiller_and_nothing_else(name):
    assert set(read_config(name).to_dict()) == {'distiller'}


@every_method
def test_losses_are_those_of_the_published_comparison(name):
    distiller = read_config(name).distiller.to_dict()
    assert distiller['distill_losses'] == LOSSES[name]
    assert set(distiller['loss_forward_mappings']) == set(LOSSES[name])


@every_method
def test_a_run_is_a_pair_and_a_method(name, tiny, tmp_path):
    pair = dict(
        model=tiny.distillation(
            teacher=tiny.classifier(tiny.vit()), student_loss_weight=1.0
        )
    )
    pair['model'].pop('distiller')
    Config(pair).dump(tmp_path / 'pair.py')
    run = tmp_path / 'run.py'
    run.write_text(
        f"_base_ = ['./pair.py', '{CONFIGS / name}.py']\n"
        'model = dict(distiller=_base_.distiller)\n'
    )
    cfg = Config.fromfile(run)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()
    model = MODELS.build(cfg.model)
    assert set(model.distiller.distill_losses) == set(LOSSES[name])


@every_method
@every_pair
def test_training_steps_lower_the_loss(name, pair, tiny):
    model = build(tiny, name, pair)
    images, samples = indexed_batch(tiny)
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=5e-3))
    before = copy.deepcopy(dict(model.named_parameters()))
    teacher = copy.deepcopy(model.teacher.model.state_dict())
    model.train()
    history = []
    for _ in range(6):
        log = model.train_step(
            dict(inputs=images, data_samples=samples), wrapper
        )
        assert all(value.isfinite() for value in log.values())
        assert set(log) == {
            'loss', 'student.loss', *(f'distill.{x}' for x in LOSSES[name])
        }  # fmt: skip
        history.append(
            sum(v.item() for k, v in log.items() if k.startswith('distill'))
        )
        if len(history) == 1:
            moved = {
                key
                for key, value in model.named_parameters()
                if not torch.equal(value, before[key])
            }
            # Student and connectors, from the first to the last.
            assert len(moved) > 0.9 * len(before)
            connectors = {k for k in before if 'connectors' in k}
            assert connectors <= moved
    assert history[-1] < 0.95 * history[0]
    for key, value in model.teacher.model.state_dict().items():
        assert torch.equal(value, teacher[key]), key
    assert all(p.grad is None for p in model.teacher.model.parameters())


@every_pair
def test_first_loss_of_a_logit_method_is_that_of_the_logits(pair, tiny):
    """The wiring: student, teacher and labels reach the right arguments."""
    from mmcakd.models.losses import (
        BinaryTargetLoss,
        DISTLoss,
        DKDLoss,
        SoftTargetLoss,
    )

    images, samples = indexed_batch(tiny)
    label = torch.tensor([index % tiny.classes for index in range(8)])
    for name, loss, extra in (
        ('kd', SoftTargetLoss(mode='kl'), ()),
        ('dkd', DKDLoss(), (label,)),
        ('dist', DISTLoss(), ()),
        ('mld', BinaryTargetLoss(mode='kl'), ()),
    ):
        model = build(tiny, name, pair).eval()
        found = model(images, samples, mode='loss')['distill.loss_kd']
        student = model.student(images, mode='tensor')
        teacher = model.teacher(images)
        expected = loss(student, teacher, *extra)
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)


@every_pair
def test_first_loss_of_rkd_is_that_of_the_pooled_last_stages(pair, tiny):
    from mmcakd.models.losses import RKDLoss

    images, samples = indexed_batch(tiny)
    model = build(tiny, 'rkd', pair).eval()
    taps = dict(resnet='backbone.layer4', vit='backbone.ln1')
    features = {}
    for net, family in zip(
        (model.teacher.model, model.student), pair, strict=True
    ):
        net.get_submodule(taps[family]).register_forward_hook(
            lambda m, i, out, family=family: features.update({family: out})
        )
    found = model(images, samples, mode='loss')['distill.loss_rkd']
    # Without the class token.
    pooled = dict(
        resnet=features['resnet'].mean((2, 3)),
        vit=features['vit'][:, 1:].mean(1),
    )
    expected = RKDLoss()(pooled[pair[1]], pooled[pair[0]])
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


@every_pair
def test_fitnet_matches_each_stage_with_its_own(pair, tiny):
    model = build(tiny, 'fitnet', pair)
    connectors = model.distiller.connectors
    widths = dict(resnet=(4, 8, 16, 32), vit=(16,) * 4)
    grids = dict(resnet=(16, 8, 4, 2), vit=(4,) * 4)
    teacher, student = pair
    for stage in range(4):
        connector = connectors[f's{stage + 1}']
        assert connector.in_channels == widths[student][stage]
        assert connector.out_channels == widths[teacher][stage]
        assert connector.grid == (grids[teacher][stage],) * 2


def test_rectangular_images(tiny):
    for name in LOSSES:
        teacher = tiny.classifier(tiny.vit(img_size=(32, 64)))
        model = tiny.build_distillation(
            teacher=teacher,
            distiller=read_config(name).distiller,
            input_size=(32, 64),
        ).eval()
        images, samples = indexed_batch(tiny, pixels=(32, 64))
        losses = model(images, samples, mode='loss')
        assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize('name', [n for n in LOSSES if n != 'crd'])
def test_mixed_batches_are_accepted(name, tiny):
    mixup = dict(augments=dict(type='Mixup', alpha=0.8))
    model = build(tiny, name, ('vit', 'resnet'), train_cfg=mixup)
    model.train()
    images, samples = indexed_batch(tiny, soft=True)
    losses = model(images, samples, mode='loss')
    assert all(torch.isfinite(value) for value in losses.values())


def test_crd_refuses_mixed_batches(tiny):
    mixup = dict(augments=dict(type='Mixup', alpha=0.8))
    with pytest.raises(ValueError, match='mixes images'):
        build(tiny, 'crd', ('vit', 'resnet'), train_cfg=mixup)


@pytest.mark.parametrize('name', ['kd', 'dkd', 'dist', 'mld'])
def test_other_class_counts_are_refused_before_training(name, tiny):
    with pytest.raises(ValueError, match='num_classes'):
        tiny.build_distillation(
            teacher=tiny.classifier(tiny.vit(), classes=7),
            distiller=read_config(name).distiller,
        )
