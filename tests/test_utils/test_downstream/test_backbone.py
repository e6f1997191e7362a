from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmcakd.registry import MODELS
from mmcakd.utils import (
    load_backbone,
)
from mmcakd.utils.downstream import (
    DownstreamHook,
)


def refusal(cfg, checkpoint) -> str:
    with pytest.raises(ValueError) as caught:
        load_backbone(cfg, checkpoint)
    return str(caught.value)


def start(cfg, checkpoint):
    """The backbone as MMEngine builds and initialises it."""
    init_default_scope('mmpretrain')
    settings = deepcopy(cfg.model.backbone)
    settings.init_cfg.checkpoint = str(checkpoint)
    backbone = MODELS.build(settings)
    backbone.init_weights()
    return backbone


# --------------------------------------------------------- the right backbone


def test_the_student_s_weights_are_expected_to_the_bit(student, read, tiny):
    cfg = read(tiny.resnet(out_indices=(0, 1, 2, 3)))
    loaded = load_backbone(cfg, student)
    saved = torch.load(student)['state_dict']
    names = {key for key in saved if key.startswith('backbone.')}
    assert {f'backbone.{name}' for name in loaded.weights} == names
    for name, weight in loaded.weights.items():
        assert torch.equal(weight, saved[f'backbone.{name}'])
    assert not loaded.resized
    loaded.verify(start(cfg, student))


def test_what_the_config_declares_new_is_left_to_it(
    save, tiny, read, tmp_path
):
    student = save(tiny.classifier(tiny.swin()), tmp_path / 'student.pth')
    backbone = tiny.swin(out_indices=(0, 1, 2, 3))
    new = ['norm0', 'norm1', 'norm2']
    cfg = read(backbone, backbone_weights=dict(new=new, unused=[]))
    loaded = load_backbone(cfg, student)
    assert {name.split('.')[0] for name in loaded.new} == set(new)
    assert not loaded.weights.keys() & set(loaded.new)
    loaded.verify(start(cfg, student))

    undeclared = refusal(read(backbone), student)
    assert 'missing: 6 (norm0.weight, norm0.bias, norm1.weight, ...)' in (
        undeclared
    )
    assert 'backbone_weights' in undeclared


def test_what_the_config_declares_unused_is_left_out(
    save, tiny, read, tmp_path
):
    student = save(tiny.classifier(tiny.vit()), tmp_path / 'student.pth')
    backbone = tiny.vit(final_norm=False)
    cfg = read(backbone, backbone_weights=dict(unused=['ln1']))
    loaded = load_backbone(cfg, student)
    assert loaded.unused == ['ln1.weight', 'ln1.bias']
    loaded.verify(start(cfg, student))
    assert 'unexpected: 2 (ln1.weight, ln1.bias)' in (
        refusal(read(backbone), student)
    )


def test_position_embeddings_are_named_when_resized(
    save, tiny, read, tmp_path
):
    student = save(tiny.classifier(tiny.vit()), tmp_path / 'student.pth')
    cfg = read(tiny.vit(img_size=(96, 128)))
    loaded = load_backbone(cfg, student)
    assert loaded.resized == {'pos_embed': ((1, 17, 16), (1, 49, 16))}
    assert loaded.weights['pos_embed'].isfinite().all()
    loaded.verify(start(cfg, student))


def test_counters_of_batch_norm_may_be_missing(save, tiny, read, tmp_path):
    def spoil(weights):
        for key in [key for key in weights if 'num_batches' in key]:
            del weights[key]

    model = tiny.classifier(tiny.resnet())
    student = save(model, tmp_path / 'student.pth', spoil)
    load_backbone(read(tiny.resnet()), student)


def test_half_precision_is_loaded_as_it_is(save, tiny, read, tmp_path):
    def spoil(weights):
        for key, value in weights.items():
            if value.is_floating_point():
                weights[key] = value.half()

    model = tiny.classifier(tiny.resnet())
    student = save(model, tmp_path / 'student.pth', spoil)
    cfg = read(tiny.resnet())
    load_backbone(cfg, student).verify(start(cfg, student))


def test_a_backbone_that_was_changed_is_named(student, read, tiny):
    cfg = read(tiny.resnet())
    loaded = load_backbone(cfg, student)
    backbone = start(cfg, student)
    backbone.conv1.weight.data[0, 0, 0, 0] += 1e-6
    with pytest.raises(RuntimeError, match=r'1 \(conv1.weight\)'):
        loaded.verify(backbone)


def test_the_hook_looks_inside_wrappers_and_not_at_resumed_runs(
    student, read, tiny
):
    cfg = read(tiny.resnet())
    hook = DownstreamHook(load_backbone(cfg, student))
    spoilt = start(cfg, student)
    spoilt.conv1.weight.data.zero_()
    model = torch.nn.Module()
    model.backbone = spoilt
    wrapped = torch.nn.DataParallel(model)
    logger = SimpleNamespace(info=print)
    with pytest.raises(RuntimeError, match='conv1.weight'):
        hook.before_train(SimpleNamespace(iter=0, model=wrapped))
    hook.before_train(SimpleNamespace(iter=5, model=wrapped, logger=logger))
    model.backbone = start(cfg, student)
    hook.before_train(SimpleNamespace(iter=0, model=wrapped, logger=logger))


# --------------------------------------------------------- the wrong backbone


def test_another_depth_is_refused(student, read, tiny):
    said = refusal(read(tiny.resnet(depth=34)), student)
    assert str(student) in said and 'detector.py' in said
    assert 'Weights missing: ' in said and 'layer1.2.conv1.weight' in said
    assert 'unexpected' not in said
    assert 'ResNet(base_channels=4, depth=18, stem_channels=4)' in said
    assert 'ResNet(base_channels=4, depth=34, stem_channels=4)' in said


def test_another_family_is_refused(student, read, tiny):
    said = refusal(read(tiny.convnext()), student)
    assert 'missing: ' in said and 'unexpected: ' in said
    assert "The student's backbone is ResNet(" in said
    assert "the config's is ConvNeXt(" in said


def test_other_widths_are_refused(student, read, tiny):
    said = refusal(read(tiny.resnet(stem_channels=8)), student)
    assert 'of another shape: 6 (' in said
    assert 'conv1.weight (4, 3, 7, 7) for (8, 3, 7, 7)' in said
    # Not hidden by the shapes: another width asks for a projection.
    assert 'missing: 5 (layer1.0.downsample.0.weight' in said


def test_other_heads_of_a_swin_are_refused(save, tiny, read, tmp_path):
    student = save(tiny.classifier(tiny.swin()), tmp_path / 'student.pth')
    arch = tiny.swin()['arch'] | dict(num_heads=[2, 2, 4, 4])
    said = refusal(read(tiny.swin(arch=arch)), student)
    assert 'relative_position_bias_table (9, 1) for (9, 2)' in said


def test_sizes_that_cannot_be_resized_are_refused(save, tiny, read, tmp_path):
    def spoil(weights):
        weights['backbone.pos_embed'] = torch.zeros(1, 15, 16)

    model = tiny.classifier(tiny.vit())
    student = save(model, tmp_path / 'student.pth', spoil)
    said = refusal(read(tiny.vit()), student)
    assert 'The length of `pos_embed` (15)' in said


@pytest.mark.parametrize(
    ('spoil', 'expected'),
    [
        (
            lambda weights: weights.pop('backbone.layer1.0.conv1.weight'),
            'Weights missing: 1 (layer1.0.conv1.weight).',
        ),
        (
            lambda weights: weights.update(
                {'backbone.layer9.weight': torch.zeros(1)}
            ),
            'Weights unexpected: 1 (layer9.weight).',
        ),
        (
            lambda weights: weights.update(
                {'backbone.bn1.bias': torch.zeros(7)}
            ),
            'Weights of another shape: 1 (bn1.bias (7,) for (4,)).',
        ),
        (
            lambda weights: weights['backbone.bn1.bias'].fill_(torch.nan),
            'Weights not finite: 1 (bn1.bias).',
        ),
    ],
)
def test_a_single_wrong_weight_is_refused(
    save, tiny, read, tmp_path, spoil, expected
):
    model = tiny.classifier(tiny.resnet())
    student = save(model, tmp_path / 'student.pth', spoil)
    assert expected in refusal(read(tiny.resnet()), student)


def test_a_config_without_prefix_is_refused(read, tiny):
    for init_cfg in (None, dict(type='Pretrained', checkpoint='x.pth')):
        with pytest.raises(ValueError, match=r"prefix='backbone\.'"):
            read(tiny.resnet(), init_cfg)


def test_a_wrong_prefix_is_refused(student, read, tiny):
    prefix = 'model.backbone.'
    init_cfg = dict(type='Pretrained', checkpoint='x.pth', prefix=prefix)
    cfg = read(tiny.resnet(), init_cfg)
    said = refusal(cfg, student)
    assert "needs model.backbone.init_cfg.prefix='backbone.'" in said


@pytest.mark.parametrize(
    ('kind', 'package'),
    [
        ('mmpretrain.TimmClassifier', 'timm'),
        ('mmcakd.TorchvisionClassifier', 'torchvision'),
        ('HuggingFaceClassifier', 'Hugging Face'),
    ],
)
def test_networks_of_other_packages_are_refused(
    kind, package, read, tiny, tmp_path
):
    meta = dict(cfg=Config(dict(model=dict(type=kind))).pretty_text)
    weights = {'conv1.weight': torch.zeros(4, 3, 7, 7)}
    path = tmp_path / 'student.pth'
    torch.save(dict(meta=meta, state_dict=weights), path)
    said = refusal(read(tiny.resnet()), path)
    assert f'a network of {package}' in said and str(path) in said


def test_bare_weights_of_other_packages_are_refused(read, tiny, tmp_path):
    path = tmp_path / 'resnet18.pth'
    torch.save({'conv1.weight': torch.zeros(4, 3, 7, 7)}, path)
    said = refusal(read(tiny.resnet()), path)
    assert '1 (conv1.weight)' in said and 'timm, torchvision' in said


@pytest.mark.parametrize(
    'text',
    ["open('{path}', 'w')", "model = open('{path}', 'w')", 'no (python'],
)
def test_the_config_in_a_checkpoint_is_not_run(text, read, tiny, tmp_path):
    path = tmp_path / 'student.pth'
    meta = dict(cfg=text.format(path=tmp_path / 'written'))
    weights = MODELS.build(tiny.classifier(tiny.resnet())).state_dict()
    torch.save(dict(meta=meta, state_dict=weights), path)
    said = refusal(read(tiny.resnet(depth=34)), path)
    assert "The student's backbone is of an unknown kind" in said
    assert not (tmp_path / 'written').exists()
