"""A teacher's weights have arrived, or training has not started."""

import copy
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.apis import ModelHub

from mmcakd.models.teachers import build_teacher
from mmcakd.models.teachers.weight_sources import (
    HuggingFacePart,
    cached_file,
    find_zoo_weights,
)

ZOO = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'


@pytest.fixture
def saved(tiny, tmp_path):
    """Save a model's weights, and return the model and the file."""

    def save(backbone=None, key=None, **kwargs):
        model = tiny.build(
            tiny.classifier(backbone or tiny.resnet(), **kwargs)
        )
        # No weight of it is what an initialisation makes.
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        path = tmp_path / f'{len(os.listdir(tmp_path))}.pth'
        state = model.state_dict()
        if key:
            state = {
                k.removeprefix(key): v
                for k, v in state.items()
                if k.startswith(key)
            }
        torch.save(dict(state_dict=state), path)
        return model, str(path)

    return save


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache; what is asked for is kept."""
    asked = []

    def refuse(url, *args, **kwargs):
        asked.append(url)
        raise OSError('Network is unreachable')

    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)
    return asked


def same(model, other) -> bool:
    expected = other.state_dict()
    return all(
        torch.equal(value, expected[key])
        for key, value in model.state_dict().items()
    )


# ------------------------------------------------------------- from nowhere


@pytest.mark.parametrize('form', ['dict', 'file', 'cfg_path'])
def test_teacher_without_weights_is_built_but_does_not_train(
    tiny, form, tmp_path
):
    cfg = tiny.classifier(tiny.resnet())
    path = tmp_path / 'teacher.py'
    Config(dict(default_scope='mmpretrain', model=cfg)).dump(path)
    source = dict(dict=cfg, file=str(path), cfg_path=dict(cfg_path=str(path)))
    model, weights = build_teacher(source[form])
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, tiny.classes)
    for _ in range(2):
        with pytest.raises(ValueError, match='no weights.*teacher_ckpt'):
            weights.arrive()


def test_random_on_purpose_is_a_word(tiny, saved):
    _, path = saved()
    pretrained = dict(type='Pretrained', checkpoint=path)
    _, weights = build_teacher(
        tiny.classifier(tiny.resnet(), init_cfg=pretrained), 'random'
    )
    weights.arrive()
    assert weights.is_random
    _, weights = build_teacher(ZOO, 'random')
    weights.arrive()


def test_built_model_has_its_weights(saved):
    given, _ = saved()
    before = copy.deepcopy(given)
    for word in (None, 'random'):
        model, weights = build_teacher(given, word)
        weights.arrive()
        assert model is given
        assert same(model, before)


def test_file_is_loaded_into_a_built_model(saved, tiny):
    source, path = saved()
    other = tiny.build(tiny.classifier(tiny.resnet()))
    model, weights = build_teacher(other, path)
    assert same(model, source)
    weights.arrive()


def test_weights_that_are_loaded_by_hand_count(tiny, saved):
    source, _ = saved()
    model, weights = build_teacher(tiny.classifier(tiny.resnet()))
    some = dict(list(source.state_dict().items())[:9])
    model.load_state_dict(some, strict=False)
    with pytest.raises(ValueError, match='no weights'):
        weights.arrive()
    model.load_state_dict(source.state_dict())
    weights.arrive()
    assert same(model, source)


# ----------------------------------------------------------- from the config


@pytest.mark.parametrize('kind', ['string', 'class', 'list'])
def test_pretrained_in_the_config_is_loaded_at_build(tiny, saved, kind):
    from mmengine.model import PretrainedInit

    source, path = saved()
    init = dict(type='Pretrained', checkpoint=path)
    if kind == 'class':
        init['type'] = PretrainedInit
    elif kind == 'list':
        init = [dict(type='TruncNormal', layer='Linear', std=0.1), init]
    cfg = tiny.classifier(tiny.resnet(), init_cfg=init)
    before = copy.deepcopy(cfg)
    model, weights = build_teacher(cfg)
    weights.arrive()
    assert same(model, source)
    assert cfg == before


def test_pretrained_that_does_not_fit_is_an_error_at_build(tiny, saved):
    _, path = saved(classes=9)
    init = dict(type='Pretrained', checkpoint=path)
    cfg = tiny.classifier(tiny.resnet(), init_cfg=init)
    with pytest.raises(RuntimeError, match=r'does not fit.*head\.fc'):
        build_teacher(cfg)


@pytest.mark.parametrize('form', ['prefix', 'bare'])
def test_pretrained_backbone_alone_is_no_teacher(tiny, saved, form):
    key = 'backbone.' if form == 'bare' else None
    source, path = saved(key=key)
    init = dict(type='Pretrained', checkpoint=path)
    if form == 'prefix':
        init['prefix'] = 'backbone'
    cfg = tiny.classifier(tiny.resnet(init_cfg=init))
    model, weights = build_teacher(cfg)
    assert same(model.backbone, source.backbone)
    with pytest.raises(ValueError) as caught:
        weights.arrive()
    for named in ('of backbone', 'head.fc.weight', 'teacher_ckpt_ignore'):
        assert named in str(caught.value)
    # Nothing reads the head.
    _, weights = build_teacher(cfg, ignore=[r'^head\.'])
    weights.arrive()


def test_prefix_that_no_weight_has_is_an_error(tiny, saved):
    _, path = saved()
    init = dict(type='Pretrained', checkpoint=path, prefix='neck.')
    with pytest.raises(RuntimeError, match='holds no weights below neck'):
        build_teacher(tiny.classifier(tiny.resnet(init_cfg=init)))


def test_named_file_comes_before_what_the_config_names(tiny, saved):
    source, path = saved()
    init = dict(type='Pretrained', checkpoint='nowhere.pth')
    cfg = tiny.classifier(tiny.resnet(init_cfg=init), init_cfg=init)
    model, weights = build_teacher(cfg, path)
    weights.arrive()
    assert same(model, source)


# ------------------------------------------------------------- from a network


def test_url_is_fetched_when_training_starts_and_not_before(
    tiny, saved, offline, monkeypatch
):
    source, path = saved()
    url = 'https://example.org/models/teacher.pth'
    model, weights = build_teacher(tiny.classifier(tiny.resnet()), url)
    assert not offline
    assert not same(model, source)
    target = Path(cached_file(url))
    with pytest.raises(RuntimeError) as caught:
        weights.arrive()
    assert offline == [url]
    for named in (url, str(target), 'teacher_ckpt'):
        assert named in str(caught.value)

    # The file that was put there is used, now and in the next run.
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(Path(path).read_bytes())
    weights.arrive()
    assert same(model, source)
    model, _ = build_teacher(tiny.classifier(tiny.resnet()), url)
    assert same(model, source)
    assert offline == [url]


@pytest.mark.parametrize(
    'source',
    [
        ZOO,
        'ResNet18_8xb32_in1k',
        dict(cfg_path=ZOO),
        dict(cfg_path=ZOO, pretrained=True),
    ],
    ids=str,
)
def test_weights_of_the_zoo_are_those_of_its_metafile(
    source, offline, monkeypatch, tmp_path
):
    said = []
    monkeypatch.setattr(
        'mmcakd.models.teachers.weight_sources.print_log',
        lambda text, logger: said.append(text),
    )
    model, weights = build_teacher(source)
    assert not offline
    url = ModelHub.get('resnet18_8xb32_in1k').weights
    with pytest.raises(RuntimeError) as caught:
        weights.arrive()
    assert offline == [url]
    target = str(tmp_path / 'cache/hub/checkpoints' / url.split('/')[-1])
    assert url in str(caught.value)
    assert target in str(caught.value)
    # 11.69 million values of four bytes, and the statistics.
    (line,) = said
    for named in (url, target, 'about 46.8 MB', 'Apache License 2.0'):
        assert named in line

    Path(target).parent.mkdir(parents=True, exist_ok=True)
    parameters = {k: v + 1 for k, v in model.state_dict().items()}
    torch.save(dict(state_dict=parameters), target)
    weights.arrive()
    assert torch.equal(model.head.fc.bias, parameters['head.fc.bias'])


def test_weights_of_the_zoo_are_not_those_its_training_began_with(
    offline, monkeypatch
):
    from mmcakd.models.teachers import build, weights

    def with_pretrained_backbone(name, role):
        cfg = build.read_model_cfg(name, role)
        init = dict(type='Pretrained', checkpoint='torchvision://resnet18')
        cfg['backbone'] = {**cfg['backbone'], 'init_cfg': init}
        return cfg

    monkeypatch.setattr(weights, 'read_source', with_pretrained_backbone)
    _, arriving = build_teacher(ZOO)
    assert not offline
    with pytest.raises(RuntimeError, match='openmmlab.*teacher_ckpt'):
        arriving.arrive()


def test_mmrazors_word_against_weights_is_heeded(offline):
    _, weights = build_teacher(dict(cfg_path=ZOO, pretrained=False))
    with pytest.raises(ValueError, match='no weights.*teacher_ckpt'):
        weights.arrive()
    assert not offline


def test_config_of_several_models_is_not_decided_by_chance():
    with pytest.raises(ValueError, match='several') as caught:
        find_zoo_weights(
            'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py'
        )
    for name in ('efficientnet-b0_3rdparty_8xb32_in1k', 'teacher_ckpt'):
        assert name in str(caught.value)


def test_config_without_weights_in_its_metafile_is_named():
    with pytest.raises(ValueError, match='none.*teacher_ckpt'):
        find_zoo_weights('mmpretrain::_base_/models/resnet50.py')


# ------------------------------------------------------- from other packages


def timm(**kwargs) -> dict:
    return dict(
        type='mmpretrain.TimmClassifier',
        model_name='vit_tiny_patch16_224',
        img_size=32,
        depth=1,
        **kwargs,
    )


def test_checkpoint_path_of_timm_is_checked(tmp_path):
    import timm as package

    network = package.create_model(
        'vit_tiny_patch16_224', img_size=32, depth=1, num_classes=3
    )
    torch.nn.init.normal_(network.head.weight)
    path = tmp_path / 'timm.pth'
    torch.save(network.state_dict(), path)
    cfg = timm(num_classes=3, checkpoint_path=str(path))
    model, weights = build_teacher(cfg)
    weights.arrive()
    assert same(model.model, network)
    cfg['num_classes'] = 4
    with pytest.raises(RuntimeError, match='does not fit'):
        build_teacher(cfg)


def test_pretrained_of_timm_is_refused_where_its_head_would_be_random():
    with pytest.raises(RuntimeError) as caught:
        build_teacher(timm(num_classes=4, pretrained=True))
    for named in ('1000 classes', 'has 4', 'head.weight', 'teacher_ckpt'):
        assert named in str(caught.value)
    # For a teacher whose logits nothing reads, and one that has none.
    build_teacher(timm(num_classes=4, pretrained=True), ignore=['^head'])
    build_teacher(timm(num_classes=0, pretrained=True))


def test_pretrained_of_timm_is_fetched_when_training_starts(monkeypatch):
    from timm.models import _builder

    asked = []

    def refuse(repo, *args, **kwargs):
        asked.append(repo)
        raise OSError('offline')

    monkeypatch.setattr(_builder, 'load_state_dict_from_hf', refuse)
    monkeypatch.setattr(_builder, 'load_state_dict_from_url', refuse)
    _, weights = build_teacher(timm(num_classes=1000, pretrained=True))
    assert not asked
    with pytest.raises(RuntimeError) as caught:
        weights.arrive()
    assert len(asked) == 1
    for named in ('vit_tiny_patch16_224', 'offline', 'teacher_ckpt'):
        assert named in str(caught.value)


def test_pretrained_of_timm_may_be_a_file(tmp_path):
    import timm as package

    network = package.create_model(
        'vit_tiny_patch16_224', img_size=32, depth=1, num_classes=3
    )
    torch.nn.init.normal_(network.head.weight)
    path = tmp_path / 'timm.pth'
    torch.save(network.state_dict(), path)
    overlay = dict(file=str(path), num_classes=3)
    model, weights = build_teacher(
        timm(num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay)
    )
    weights.arrive()
    assert same(model.model, network)


@pytest.fixture
def vit_of_hugging_face(tmp_path):
    """A folder with a tiny ViT of three classes, as Hugging Face saves it."""
    transformers = pytest.importorskip(
        'transformers', reason='transformers is not installed'
    )
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=32,
        patch_size=16,
        num_labels=3,
    )
    network = transformers.ViTForImageClassification(config)
    network.save_pretrained(tmp_path / 'vit')
    return network, tmp_path / 'vit'


def hugging_face(folder, **kwargs) -> dict:
    return dict(
        type='mmpretrain.HuggingFaceClassifier',
        model_name=str(folder),
        pretrained=True,
        **kwargs,
    )


def test_pretrained_of_hugging_face_is_loaded(vit_of_hugging_face):
    network, folder = vit_of_hugging_face
    model, weights = build_teacher(hugging_face(folder))
    weights.arrive()
    assert same(model.model, network)


@pytest.mark.parametrize('fault', ['other classes', 'no head'])
def test_head_that_hugging_face_would_make_up_is_refused(
    vit_of_hugging_face, fault
):
    network, folder = vit_of_hugging_face
    kwargs = {}
    if fault == 'no head':
        network.vit.save_pretrained(folder)
    else:
        kwargs = dict(num_labels=5, ignore_mismatched_sizes=True)
    cfg = hugging_face(folder, **kwargs)
    with pytest.raises(RuntimeError) as caught:
        build_teacher(cfg)
    for named in (str(folder), 'classifier.', 'teacher_ckpt_ignore'):
        assert named in str(caught.value)
    _, weights = build_teacher(cfg, ignore=['^classifier'])
    weights.arrive()


def test_hugging_face_is_asked_when_training_starts(
    vit_of_hugging_face, monkeypatch
):
    network, folder = vit_of_hugging_face
    # As for a name that is no folder.
    monkeypatch.setattr(HuggingFacePart, 'is_here', lambda *_: False)
    model, weights = build_teacher(hugging_face(folder))
    assert not same(model.model, network)
    weights.arrive()
    assert same(model.model, network)
