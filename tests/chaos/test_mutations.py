"""Any config, and any file, ends in success or in one sentence."""

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mmengine.registry import DefaultScope

from mmcakd.models.teachers import read_checkpoint
from mmcakd.registry import MODELS
from mmcakd.utils import read_config_text, read_json
from mmcakd.utils.command_line import describe_error

#: What is raised on purpose. Others come from what was not thought of.
ON_PURPOSE = (ValueError, TypeError, RuntimeError, KeyError, OSError)

#: What Python says of a program that is wrong.
PROGRAM = re.compile(
    "'NoneType' object|object has no|subscriptable|not iterable|"
    'unexpected keyword|positional argument|unsupported operand'
)

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**6),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.floats(-1e3, 1e3),
    st.text(max_size=5),
    st.sampled_from(['4', 'stages', 'logits', 'mmcakd.Logits', 'hard', '']),
    st.just([]),
    st.just({}),
    st.just([1, 'a']),
    st.just(dict(type='mmcakd.MSELoss')),
    st.just(dict(recorder='logits', from_student=False)),
)


def paths(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """Places in a config, but for its type, which MMEngine looks up."""
    if path == ('type',):
        return
    if path:
        yield path
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield from paths(tree[key], (*path, key))
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from paths(item, (*path, index))


@st.composite
def mutations(draw, config: dict) -> tuple[dict, str]:
    """Change one or two places: another value, no such key, another name."""
    config = copy.deepcopy(config)
    done = []
    for _ in range(draw(st.integers(1, 2))):
        places = list(paths(config))
        *parents, key = draw(st.sampled_from(places))
        node = config
        for parent in parents:
            node = node[parent]
        kind = draw(st.sampled_from(['value', 'value', 'remove', 'rename']))
        if kind == 'value':
            # The next one may change it in turn.
            node[key] = copy.deepcopy(draw(VALUES))
        elif kind == 'remove':
            del node[key]
        elif isinstance(node, dict):
            node[draw(st.text('abcdefgh_', min_size=1))] = node.pop(key)
        done.append(f'{kind} at {(*parents, key)}')
    return config, '; '.join(done)


@pytest.fixture(scope='module')
def configs(tiny) -> dict[str, dict]:
    """Distillations whose models were built before, which saves time."""
    student = tiny.build(tiny.classifier(tiny.resnet()))
    teacher = tiny.build(tiny.classifier(tiny.swin()))
    common = dict(architecture=student, teacher=teacher)
    return {
        'scalekd': tiny.distillation(**common),
        'kd': tiny.distillation(**common, distiller=tiny.logit_kd()),
    }


@pytest.mark.parametrize('method', ['scalekd', 'kd'])
@given(data=st.data())
def test_config_builds_and_learns_or_says_in_a_sentence_why_not(
    configs, tiny, method, data
):
    models = {key: configs[method][key] for key in ('architecture', 'teacher')}
    plain = {k: v for k, v in configs[method].items() if k not in models}
    config, done = data.draw(mutations(plain))
    assume(isinstance(config, dict))
    try:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build({**models, **config}).train()
        images, samples = tiny.batch(4)
        losses = model(images, samples, mode='loss')
    except ON_PURPOSE as error:
        said = describe_error(error)
        # A sentence: words, and not the inside of a program.
        assert len(said.split()) >= 4, (done, said)
        assert not PROGRAM.search(said), (done, said)
        return
    total, _ = model.parse_losses(losses)
    assert total.requires_grad, done
    assert math.isfinite(total.detach()), done


# ---------------------------------------------------------------------- files


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('files') / 'whole.pth'
    torch.save(
        dict(
            meta=dict(iter=3, cfg='model = dict()'),
            state_dict={
                f'layer{i}.weight': torch.arange(60.0) + i for i in range(3)
            },
            optimizer=dict(state={0: dict(step=torch.tensor(1.0))}),
        ),
        path,
    )
    return path


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Cut, overwrite, fill with zeros, insert or exchange."""
    start = draw(st.integers(0, len(content) - 1))
    length = draw(st.integers(1, 200))
    kind = draw(st.sampled_from(['cut', 'flip', 'zeros', 'insert', 'drop']))
    rest = content[start + length :]
    if kind == 'cut':
        return content[:start]
    if kind == 'flip':
        bit = 1 << draw(st.integers(0, 7))
        return (
            content[:start]
            + bytes([content[start] ^ bit])
            + content[start + 1 :]
        )
    if kind == 'zeros':
        return content[:start] + bytes(length) + rest
    if kind == 'insert':
        return (
            content[:start] + draw(st.binary(max_size=200)) + content[start:]
        )
    return content[:start] + rest


@given(data=st.data())
def test_damaged_checkpoint_is_read_right_or_not_at_all(checkpoint, data):
    content = data.draw(damaged(checkpoint.read_bytes()))
    path = checkpoint.with_name('damaged.pth')
    path.write_bytes(content)
    try:
        found = read_checkpoint(path)
    except RuntimeError as error:
        said = str(error)
        assert said.startswith(str(path))
        assert 'weights_only=False' not in said
        assert '\n' not in said
        return
    expected = torch.load(checkpoint)
    for name, weight in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][name], weight)


@given(content=st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_any_file_named_as_a_checkpoint_is_explained(
    tmp_path_factory, content
):
    path = tmp_path_factory.getbasetemp() / 'any.pth'
    path.write_bytes(content)
    with pytest.raises(RuntimeError) as raised:
        read_checkpoint(path)
    assert str(raised.value).startswith(str(path))
    assert '\n' not in str(raised.value)


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_ledger_is_read_or_named(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / 'ledger.json'
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except ValueError as error:
        assert str(path) in str(error)


CALLS = st.sampled_from(
    ['__import__("os").system("touch marker")', 'open("marker", "w")', 'exec']
)


@given(
    text=st.text(max_size=100)
    | st.builds('model = dict(type={}, x={})'.format, CALLS, VALUES)
    | st.builds('{}\nmodel = dict(a={})'.format, CALLS, VALUES)
)
def test_text_of_a_config_is_never_run(tmp_path_factory, text):
    import os

    folder = tmp_path_factory.getbasetemp() / 'configs'
    folder.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        read_config_text(text, 'epoch_1.pth')
    except ValueError as error:
        assert 'epoch_1.pth' in str(error)
    finally:
        os.chdir(before)
    assert not list(folder.iterdir())
