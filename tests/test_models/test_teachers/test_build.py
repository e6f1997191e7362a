"""A model is built from whatever names it."""

import copy

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from mmcakd.models.teachers import build_model

ZOO = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'


@pytest.mark.parametrize('kind', [dict, ConfigDict])
def test_config_is_built_and_left_as_it_was(tiny, kind):
    cfg = kind(
        tiny.classifier(
            tiny.resnet(),
            data_preprocessor=dict(mean=[0.0] * 3, std=[1.0] * 3),
            train_cfg=dict(augments=dict(type='Mixup', alpha=1.0)),
        )
    )
    before = copy.deepcopy(cfg)
    for _ in range(2):
        model = build_model(cfg, 'student')
        assert model.data_preprocessor.batch_augments is not None
    assert cfg == before


@pytest.mark.parametrize('scope', [None, 'mmpretrain', 'mmrazor', 'mmcakd'])
@pytest.mark.parametrize('type_', ['mmpretrain.ImageClassifier', None])
def test_plain_names_inside_are_those_of_the_outer_scope(tiny, scope, type_):
    cfg = tiny.classifier(tiny.resnet())
    if type_ is None:
        cfg.update(type='ImageClassifier', _scope_='mmpretrain')
    with DefaultScope.overwrite_default_scope(scope):
        model = build_model(cfg, 'teacher')
    assert type(model).__module__.startswith('mmpretrain.')


@pytest.mark.parametrize(
    'source',
    [ZOO, dict(cfg_path=ZOO, pretrained=False), 'mobilenet-v2_8xb32_in1k'],
    ids=['path in a package', 'cfg_path', 'name in the zoo'],
)
def test_models_of_mmpretrain_are_known_by_name(source):
    model = build_model(source, 'teacher')
    assert type(model.backbone).__name__ == 'MobileNetV2'
    preprocessor = model.data_preprocessor
    assert preprocessor.mean.flatten().tolist() == pytest.approx(
        [123.675, 116.28, 103.53]
    )
    assert preprocessor.to_rgb


def test_config_file_on_disk_is_read(tiny, tmp_path):
    path = tmp_path / 'teacher.py'
    cfg = tiny.classifier(tiny.resnet())
    cfg['type'] = 'ImageClassifier'
    Config(
        dict(
            default_scope='mmpretrain',
            model=cfg,
            data_preprocessor=dict(mean=[1.0] * 3, std=[2.0] * 3),
        )
    ).dump(path)
    model = build_model(str(path), 'teacher')
    assert model.data_preprocessor.std.flatten().tolist() == [2, 2, 2]


def test_built_model_is_taken_as_it_is(tiny):
    model = tiny.build(tiny.classifier(tiny.resnet()))
    assert build_model(model, 'student') is model


def test_preprocessor_is_used_where_the_model_has_none(tiny):
    given = dict(mean=[3.0] * 3, std=[1.0] * 3)
    cfg = tiny.classifier(tiny.resnet())
    model = build_model(cfg, 'student', dict(given))
    assert model.data_preprocessor.mean.flatten().tolist() == [3, 3, 3]
    own = cfg | dict(data_preprocessor=dict(mean=[4.0] * 3, std=[1.0] * 3))
    model = build_model(own, 'student', dict(given))
    assert model.data_preprocessor.mean.flatten().tolist() == [4, 4, 4]


def test_one_preprocessor_config_may_serve_both_models(tiny):
    shared = dict(mean=[0.0] * 3, std=[1.0] * 3)
    cfg = tiny.classifier(tiny.resnet(), data_preprocessor=shared)
    build_model(cfg, 'teacher')
    mixup = dict(augments=dict(type='Mixup', alpha=1.0))
    student = build_model(cfg | dict(train_cfg=mixup), 'student')
    assert student.data_preprocessor.batch_augments is not None


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ('role', 'key'), [('student', 'architecture'), ('teacher', 'teacher')]
)
@pytest.mark.parametrize('source', [None, {}, ''])
def test_nothing_to_build_is_named_with_its_cure(role, key, source):
    with pytest.raises(ValueError, match=f'no {role} is given') as caught:
        build_model(source, role)
    assert f'{key}=' in str(caught.value)


def test_weights_that_would_load_unchecked_are_refused():
    with pytest.raises(ValueError, match='teacher.*teacher_ckpt'):
        build_model(dict(cfg_path=ZOO, pretrained=True), 'teacher')


def test_unknown_name_is_named():
    with pytest.raises(ValueError, match='teacher.*resnet-9000'):
        build_model('resnet-9000', 'teacher')


@pytest.mark.parametrize('source', [['swin'], 3, torch.nn.Linear(1, 1)])
def test_source_of_another_kind_is_refused(source):
    with pytest.raises(TypeError, match=f'teacher.*{type(source).__name__}'):
        build_model(source, 'teacher')


def test_network_of_another_package_is_told_its_wrapper():
    from torchvision.models import shufflenet_v2_x0_5

    with pytest.raises(TypeError, match='ShuffleNetV2.*TorchvisionClass'):
        build_model(shufflenet_v2_x0_5(), 'teacher')


def test_wrapped_network_of_torchvision_is_built_from_its_config():
    cfg = dict(
        type='mmcakd.TorchvisionClassifier',
        model_name='shufflenet_v2_x0_5',
        num_classes=5,
    )
    preprocessor = dict(mean=[3.0] * 3, std=[1.0] * 3)
    model = build_model(cfg, 'teacher', preprocessor)
    assert type(model.model).__name__ == 'ShuffleNetV2'
    assert model.data_preprocessor.mean.flatten().tolist() == [3, 3, 3]


def test_bare_backbone_becomes_a_model_without_a_head(tiny):
    cfg = tiny.resnet() | dict(type='mmpretrain.ResNet')
    preprocessor = dict(mean=[3.0] * 3, std=[1.0] * 3)
    model = build_model(cfg, 'student', preprocessor)
    assert type(model.backbone).__name__ == 'ResNet'
    assert model.head is None
    assert model.data_preprocessor.mean.flatten().tolist() == [3, 3, 3]
    assert build_model(model.backbone, 'student').backbone is model.backbone


@pytest.mark.parametrize('prefix', ['', 'mmpretrain.'])
def test_model_in_a_base_of_mmcakd_is_of_its_own_package(tiny, prefix):
    # As MMEngine reads `_base_ = 'mmcakd::...'`.
    cfg = tiny.classifier(tiny.resnet()) | dict(
        type=f'{prefix}ImageClassifier', _scope_='mmcakd'
    )
    for default in (None, 'mmpretrain'):
        if default:
            DefaultScope.get_instance('run', scope_name=default)
        model = build_model(cfg, 'student')
        assert type(model.backbone).__name__ == 'ResNet'


def test_model_of_a_plain_name_is_no_backbone(tiny):
    cfg = tiny.classifier(tiny.resnet()) | dict(type='ImageClassifier')
    assert build_model(cfg, 'student').head is not None


def test_weights_of_a_wrapped_network_outlive_initialisation():
    cfg = dict(
        type='mmpretrain.TimmClassifier',
        model_name='vit_tiny_patch16_224',
        img_size=32,
        depth=1,
        num_classes=3,
    )
    model = build_model(cfg, 'teacher')
    # As pre-trained weights would: timm's own initialisation differs.
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
