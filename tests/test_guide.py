"""What the guide and the page on adding a method show is run."""

import importlib
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.apis import get_model
from mmpretrain.structures import DataSample

from mmcakd.registry import MODELS
from mmcakd.utils import export_student

DOCS = Path(__file__).parents[1] / 'docs'


def section(title: str) -> str:
    """A section of the guide, with those below it."""
    text = (DOCS / 'guide.md').read_text('utf-8')
    level, rest = re.search(
        rf'^(##+) {re.escape(title)}\n(.*)', text, re.DOTALL | re.MULTILINE
    ).groups()
    return re.split(rf'^#{{2,{len(level)}}} ', rest, flags=re.MULTILINE)[0]


def blocks(text: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', text, re.DOTALL)


def model_of(code: str) -> dict:
    said = {}
    exec(code, said)
    return said['model']


def build(tiny, model: dict, **kwargs):
    """Build a distillation of the guide with tiny models."""
    cfg = tiny.distillation(distiller=tiny.logit_kd(), **kwargs)
    if model.keys() & {'teacher', 'teachers'}:
        del cfg['teacher'], cfg['teacher_ckpt']
    with warnings.catch_warnings():
        warnings.simplefilter('error', FutureWarning)
        return tiny.build(cfg | model)


class Blind(DataSample):
    """A sample whose labels must not be touched."""

    @property
    def gt_label(self):
        raise AssertionError('a label was read')

    gt_score = gt_label


def learn(model, images, samples) -> dict:
    losses = model.train()(images, samples, mode='loss')
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.parameters())
    return losses


def bare(backbone: dict) -> dict:
    return backbone | dict(type=f'mmpretrain.{backbone["type"]}')


# ------------------------------------------------------------------ the guide


def test_options_of_the_teacher(tiny):
    code, with_base = blocks(section('Its options'))
    model = model_of(code)
    assert 'swin' in model['teacher']['model']
    model['teacher']['model'] = tiny.classifier(tiny.swin())
    model['teacher_ckpt'] = 'random'
    assert build(tiny, model).teacher.precision == 'bf16'


def test_option_is_added_to_the_teacher_of_a_base(tmp_path):
    _, code = blocks(section('Its options'))
    path = tmp_path / 'run.py'
    configs = DOCS.parent / 'configs'
    path.write_text(code.replace("'./", f"'{configs}/cakd/"))
    cfg = Config.fromfile(path)
    assert set(cfg.model.teacher) == {'model', 'precision'}
    assert cfg.model.teacher.model == cfg.teacher
    assert 'large' in cfg.teacher


def test_several_teachers(tiny):
    (code,) = blocks(section('Several teachers'))
    model = model_of(code)
    models = dict(dino=bare(tiny.vit()), swin=tiny.classifier(tiny.swin()))
    for name, teacher in model['teachers'].items():
        teacher.update(model=models[name], ckpt='random')
    built = build(tiny, model)
    calls = []
    for name, teacher in built.live_teachers.items():
        teacher.register_forward_hook(lambda *_, name=name: calls.append(name))
    losses = learn(built, *tiny.batch())
    assert calls == ['dino', 'swin']
    for name in ('dino', 'swin', 'kd'):
        assert losses[f'distill.loss_{name}'] > 0


def test_stored_teacher(tiny, tmp_path, monkeypatch):
    definition, code = blocks(section('Stored teachers'))
    said = {}
    exec(definition, said)
    try:
        monkeypatch.chdir(tmp_path)
        np.save('logits.npy', np.random.rand(6, tiny.classes))
        built = build(tiny, model_of(code))
    finally:
        MODELS.module_dict.pop('LogitsOfFile')
    images, samples = tiny.batch()
    for place, sample in zip((5, 2), samples, strict=True):
        sample.set_metainfo(dict(sample_idx=place))
    assert learn(built, images, samples)['distill.loss_kd'] > 0


def test_no_teacher(tiny):
    (code,) = blocks(section('No teacher'))
    losses = learn(build(tiny, model_of(code)), *tiny.batch())
    assert set(losses) == {'student.loss', 'distill.loss_exit'}


def test_backbones_without_a_head(tiny):
    (code,) = blocks(section('Backbones without a head'))
    model = model_of(code) | dict(
        architecture=bare(tiny.resnet()),
        teacher=bare(tiny.vit()),
        teacher_ckpt='random',
        input_size=64,
    )
    built = build(tiny, model)
    images, _ = tiny.batch()
    losses = learn(built, images, [Blind(), Blind()])
    assert set(losses) == {'distill.loss_mimic'}
    predicted = built.eval()(images, None, mode='predict')
    assert predicted[0].feature.shape == (32,)


def test_training_without_labels(tiny):
    (code,) = blocks(section('Training without labels'))
    images, _ = tiny.batch()
    losses = learn(build(tiny, model_of(code)), images, [Blind(), Blind()])
    assert set(losses) == {'distill.loss_kd'}


def test_options_that_moved_are_shown_nowhere():
    root = DOCS.parent
    moved = re.compile(
        r'teacher_(mode|input_size|precision|channels_last|compile)\b'
    )
    for document in (*root.glob('configs/**/*.md'), *DOCS.glob('*.md')):
        if document.name not in ('guide.md', 'migration.md'):
            assert not moved.search(document.read_text('utf-8')), document


# ------------------------------------------------------------ adding a method


@pytest.fixture
def my_method(tmp_path, monkeypatch) -> Path:
    """The files of the page, as a package."""
    page = (DOCS / 'add_a_method.md').read_text('utf-8')
    files = re.findall(
        r'`(my_method/\w+\.py)`[^`]*?:\n\n```python\n(.*?)```',
        page,
        re.DOTALL,
    )
    assert len(files) == len(blocks(page)) == 4
    (tmp_path / 'my_method').mkdir()
    (tmp_path / 'configs').symlink_to(DOCS.parent / 'configs')
    for name, code in files:
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path / 'my_method'
    for name in ('AttentionLoss', 'AttentionMap'):
        MODELS.module_dict.pop(name)


def test_method_of_the_page_trains_and_is_exported(my_method, tmp_path):
    cfg = Config.fromfile(my_method / 'vit_resnet.py')
    cfg.model.teacher_ckpt = str(DOCS.parent / cfg.model.teacher_ckpt)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    wrapper.initialize_count_status(model, 0, 2)
    data = dict(
        inputs=[torch.randint(256, (3, 64, 64)) for _ in range(4)],
        data_samples=[DataSample().set_gt_label(i) for i in range(4)],
    )
    for _ in range(2):
        before = model.student.backbone.conv1.weight.clone()
        logged = model.train_step(data, wrapper)
        assert 0 < logged['distill.loss_attention'] < 40
        assert not torch.equal(before, model.student.backbone.conv1.weight)
    assert model.distiller.connectors['student'].grid == (8, 8)

    torch.save(
        dict(meta=dict(cfg=cfg.pretty_text), state_dict=model.state_dict()),
        tmp_path / 'epoch_1.pth',
    )
    file = export_student(tmp_path / 'epoch_1.pth')
    exported = get_model(str(file.with_suffix('.py')), pretrained=str(file))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.student.eval()(images, mode='tensor')
        torch.testing.assert_close(exported.eval()(images), expected)

    test = importlib.import_module('my_method.test_attention_loss')
    test.test_value_and_gradient()
