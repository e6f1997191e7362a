"""Weights are loaded entirely and safely, or an error says why not."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmcakd.models.teachers import (
    check_finite,
    load_weights,
    read_state_dict,
)


def net(width: int = 4, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, classes)
    )


def save(weights, path: Path, form: str) -> Path:
    if form == 'safetensors':
        path = path.with_suffix('.safetensors')
        save_file(weights, path)
    elif form == 'bare':
        torch.save(weights, path)
    elif form == 'before torch 1.6':
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({form: weights, 'meta': dict(epoch=3)}, path)
    return path


@pytest.mark.parametrize(
    'form',
    ['bare', 'state_dict', 'model', 'safetensors', 'before torch 1.6'],
)
def test_every_form_of_checkpoint_is_loaded(tmp_path, form):
    source, target = net(), net()
    path = save(source.state_dict(), tmp_path / 'weights.pth', form)
    load_weights(target, path)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_only_tensors_are_read(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(weight=torch.ones(1), version=3), path)
    assert list(read_state_dict(path)) == ['weight']


def test_weights_of_another_position_grid_are_interpolated(tiny, tmp_path):
    source = tiny.build(tiny.classifier(tiny.vit()))
    path = save(source.state_dict(), tmp_path / 'vit.pth', 'state_dict')
    target = tiny.build(tiny.classifier(tiny.vit(img_size=96)))
    load_weights(target, str(path))
    assert target.backbone.pos_embed.shape == (1, 37, 16)
    assert torch.equal(target.head.layers.head.weight,
                       source.head.layers.head.weight)  # fmt: skip


def test_swin_of_another_input_size_is_loaded(tiny, tmp_path):
    source = tiny.build(tiny.classifier(tiny.swin()))
    path = save(source.state_dict(), tmp_path / 'swin.pth', 'state_dict')
    target = tiny.build(tiny.classifier(tiny.swin(img_size=96)))
    load_weights(target, str(path))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_what_a_network_computes_for_itself_may_be_missing(tiny, tmp_path):
    source = tiny.build(tiny.classifier(tiny.swin()))
    weights = {
        key: value
        for key, value in source.state_dict().items()
        if 'relative_position_index' not in key
    }
    assert len(weights) < len(source.state_dict())
    path = save(weights, tmp_path / 'swin.pth', 'state_dict')
    load_weights(tiny.build(tiny.classifier(tiny.swin())), str(path))


# --------------------------------------------------------------- what differs


@pytest.mark.parametrize('form', ['bare', 'safetensors'])
@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (lambda w: w.pop('2.weight'), '1 missing.*2.weight'),
        (lambda w: w.update(neck=torch.ones(1)), '1 unexpected.*neck'),
        (
            lambda w: w.update({'0.bias': torch.ones(7)}),
            r'1 of another shape.*0\.bias.*\[7\].*\[4\]',
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, form, change, named):
    weights = dict(net().state_dict())
    change(weights)
    path = save(weights, tmp_path / 'weights.pth', form)
    with pytest.raises(RuntimeError, match=named) as caught:
        load_weights(net(), path)
    assert str(path) in str(caught.value)
    assert 'number of classes' in str(caught.value)


def test_checkpoint_of_another_architecture_is_refused(tiny, tmp_path):
    source = tiny.build(tiny.classifier(tiny.swin()))
    path = save(source.state_dict(), tmp_path / 'swin.pth', 'state_dict')
    target = tiny.build(tiny.classifier(tiny.resnet()))
    with pytest.raises(RuntimeError, match='missing.*unexpected') as caught:
        load_weights(target, path)
    assert 'Is it the checkpoint of this architecture' in str(caught.value)
    # A few keys are shown, not hundreds.
    assert len(str(caught.value)) < 1000


def test_leaving_out_the_head_does_not_let_another_architecture_pass(
    tiny, tmp_path
):
    source = tiny.build(tiny.classifier(tiny.swin()))
    path = save(source.state_dict(), tmp_path / 'swin.pth', 'state_dict')
    target = tiny.build(tiny.classifier(tiny.resnet()))
    for pattern in ('head', r'^head\.', r'head\.fc'):
        with pytest.raises(RuntimeError, match='missing.*unexpected'):
            load_weights(target, path, ignore=[pattern])


def test_a_head_of_other_classes_may_be_left_out(tiny, tmp_path):
    source = tiny.build(tiny.classifier(tiny.swin(), classes=7))
    path = save(source.state_dict(), tmp_path / 'swin.pth', 'state_dict')
    target = tiny.build(tiny.classifier(tiny.swin()))
    load_weights(target, path, ignore=[r'^head\.'])
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(target.backbone.state_dict()[key], value)


def test_other_class_count_is_refused(tiny, tmp_path):
    source = tiny.build(tiny.classifier(tiny.swin(), classes=7))
    path = save(source.state_dict(), tmp_path / 'swin.pth', 'state_dict')
    with pytest.raises(RuntimeError, match='head.fc.*number of classes'):
        load_weights(tiny.build(tiny.classifier(tiny.swin())), path)


def test_other_class_count_of_a_timm_classifier_is_refused(tmp_path):
    from mmpretrain.models import TimmClassifier

    path = tmp_path / 'timm.pth'
    state_dict = TimmClassifier('resnet10t', num_classes=3).state_dict()
    torch.save(state_dict, path)
    model = TimmClassifier('resnet10t', num_classes=4)
    with pytest.raises(RuntimeError, match='2 of another shape.*fc.weight'):
        load_weights(model, path)
    load_weights(model, path, ignore=[r'^(model\.)?fc\.'])


def test_named_keys_may_be_left_out(tmp_path):
    weights = dict(net(classes=9).state_dict())
    head = {key: weights.pop(key) for key in ('2.weight', '2.bias')}
    path = save(weights, tmp_path / 'weights.pth', 'bare')
    with pytest.raises(RuntimeError, match='2 missing'):
        load_weights(net(), path)
    load_weights(net(), path, ignore=[r'^2\.'])
    with pytest.raises(RuntimeError, match='1 missing'):
        load_weights(net(), path, ignore=[r'^2\.bias'])
    path = save(weights | dict(aux=head['2.bias']), path, 'bare')
    load_weights(net(), path, ignore=[r'^2\.', '^aux$'])


# ------------------------------------------------------------- what is broken


def test_missing_file_is_named(tmp_path):
    for name in ('nowhere.pth', 'nowhere.safetensors'):
        with pytest.raises(FileNotFoundError, match=name):
            load_weights(net(), tmp_path / name)


@pytest.mark.parametrize('kept', [0, 10, 500, 0.5, 0.95])
@pytest.mark.parametrize(
    'form', ['state_dict', 'safetensors', 'before torch 1.6']
)
def test_truncated_file_is_named_with_its_cure(tmp_path, form, kept):
    model = net(width=400)
    path = save(model.state_dict(), tmp_path / 'cut.pth', form)
    content = path.read_bytes()
    length = int(len(content) * kept) if isinstance(kept, float) else kept
    path.write_bytes(content[:length])
    with pytest.raises(RuntimeError, match='truncated') as caught:
        load_weights(net(width=400), path)
    assert str(path) in str(caught.value)
    assert 'again' in str(caught.value)
    assert 'weights_only' not in str(caught.value)


def test_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / 'page.pth'
    path.write_text('<html>not found</html>')
    with pytest.raises(RuntimeError, match='could not be read'):
        load_weights(net(), path)


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f'touch {self.trace}',)


@pytest.mark.parametrize('old_format', [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, old_format):
    trace, path = tmp_path / 'code_ran', tmp_path / 'hostile.pth'
    torch.save(
        dict(state_dict=net().state_dict(), optimizer=Hostile(trace)),
        path,
        _use_new_zipfile_serialization=not old_format,
    )
    with pytest.raises(RuntimeError, match='could run code') as caught:
        load_weights(net(), path)
    message = str(caught.value)
    assert str(path) in message
    assert 'system' in message
    assert "torch.save({'state_dict': model.state_dict()}, path)" in message
    # torch's own advice is to switch the safety off.
    assert 'weights_only' not in message
    assert not trace.exists()


def test_plain_pickle_is_refused_as_what_it_is(tmp_path):
    path = tmp_path / 'plain.pth'
    path.write_bytes(pickle.dumps(dict(weight=[1.0])))
    with pytest.raises(RuntimeError, match='holds more than weights'):
        load_weights(net(), path)


@pytest.mark.parametrize('content', [[1, 2], 'text', dict(epoch=3)])
def test_file_without_weights_is_refused(tmp_path, content):
    path = tmp_path / 'no_weights.pth'
    torch.save(content, path)
    with pytest.raises(RuntimeError, match=r'no_weights\.pth holds'):
        load_weights(net(), path)


# ---------------------------------------------------------- what is not finite


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('key', ['0.weight', '1.running_var', '2.bias'])
def test_weights_that_are_not_finite_are_refused(key, value, tmp_path):
    weights = dict(net().state_dict())
    weights[key] = weights[key].clone()
    weights[key].view(-1)[1] = value
    path = save(weights, tmp_path / 'diverged.pth', 'state_dict')
    with pytest.raises(RuntimeError, match='not finite') as caught:
        load_weights(net(), path)
    count = weights[key].numel()
    assert f'{key} has 1 of {count} values' in str(caught.value)
    assert str(path) in str(caught.value)


def test_masks_of_attention_may_be_infinite_but_not_nan(tmp_path):
    weights = dict(
        attn_mask=torch.tensor([0.0, -float('inf')]),
        steps=torch.tensor([3]),
        half=torch.ones(2, dtype=torch.float16),
    )
    check_finite(weights, 'clip.pth')
    weights['attn_mask'][0] = float('nan')
    with pytest.raises(RuntimeError, match='attn_mask has 1 of 2'):
        check_finite(weights, 'clip.pth')


# ------------------------------------------------------- what may be left out


def test_a_pattern_may_be_given_alone(tmp_path):
    weights = dict(net().state_dict())
    del weights['2.bias']
    path = save(weights, tmp_path / 'weights.pth', 'bare')
    load_weights(net(), path, ignore=r'^2\.')
    with pytest.raises(RuntimeError, match='1 missing'):
        load_weights(net(), path, ignore='^1')


@pytest.mark.parametrize('ignore', [3, None, dict(a=1), [1], [['^2']], {'^2'}])
def test_other_kinds_of_patterns_are_refused(ignore, tmp_path):
    path = save(net().state_dict(), tmp_path / 'weights.pth', 'bare')
    with pytest.raises(TypeError, match='list of regular expressions'):
        load_weights(net(), path, ignore=ignore)


def test_a_pattern_that_is_none_is_named(tmp_path):
    path = save(net().state_dict(), tmp_path / 'weights.pth', 'bare')
    with pytest.raises(ValueError, match=r"'\(head' is no regular"):
        load_weights(net(), path, ignore=['(head'])


@pytest.mark.parametrize('ignore', ['.', ['.*'], ['^0', '^1', '^2', '^x'], ''])
def test_most_parameters_have_to_arrive(ignore, tmp_path):
    path = save({'x.y': torch.ones(1)}, tmp_path / 'nofit.pth', 'bare')
    with pytest.raises(RuntimeError, match='fills 0 of the 6 parameters'):
        load_weights(net(), path, ignore=ignore)
    weights = dict(list(net().state_dict().items())[:2])
    path = save(weights, tmp_path / 'part.pth', 'bare')
    with pytest.raises(RuntimeError, match='fills 2 of the 6 parameters'):
        load_weights(net(), path, ignore=['^1', '^2'])
