import csv
import importlib.util
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmcakd.models import build_model

REPO = Path(__file__).resolve().parents[2]
TOOL = 'tools/analysis_tools/cka.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('cka_tool', REPO / TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tool, main_of, monkeypatch, capsys):
    """Run the tool in this process; return its exit status and output."""

    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', [TOOL, *map(str, arguments)])
        return main_of(tool), ''.join(capsys.readouterr())

    return run


@pytest.fixture(scope='module')
def teacher_ckpt(tiny_config, tmp_path_factory) -> Path:
    torch.manual_seed(1)
    model = build_model(Config.fromfile(tiny_config).teacher, 'teacher')
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def plain(trained) -> tuple[Path, Path]:
    return trained / 'student.py', trained / 'student.pth'


def read_csv(out: Path) -> dict[tuple[str, str, str, str], float]:
    with open(out / 'cka.csv') as file:
        return {
            (r['model_1'], r['layer_1'], r['model_2'], r['layer_2']): float(
                r['cka']
            )
            for r in csv.DictReader(file)
        }


def features(model, inputs: torch.Tensor, paths) -> dict[str, torch.Tensor]:
    """What modules return, flattened."""
    kept = {}
    for path in paths:
        model.get_submodule(path).register_forward_hook(
            lambda m, i, output, path=path: kept.update(
                {path: output.flatten(1).double()}
            )
        )
    with torch.no_grad():
        model.eval()(inputs, mode='tensor')
    return kept


def hsic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The inner product of U-centred Gram matrices, another form of it."""
    n = len(x)

    def centred(gram):
        gram = gram - torch.diag(gram.diagonal())
        rows = gram.sum(1, keepdim=True) / (n - 2)
        gram = gram - rows - rows.T + gram.sum() / ((n - 1) * (n - 2))
        return gram - torch.diag(gram.diagonal())

    return (centred(x @ x.T) * centred(y @ y.T)).sum() / (n * (n - 3))


def test_distillation_is_shown_before_and_after(
    trained, tiny_config, tiny_data, teacher_ckpt, run_tool, tmp_path
):
    printed = run_tool(
        TOOL,
        tiny_config,
        trained / 'epoch_1.pth',
        '--stages',
        '--batch-size',
        8,
        '--out',
        tmp_path / 'cka',
        '--cfg-options',
        f'model.teacher_ckpt={teacher_ckpt}',
    )
    assert 'from 1 batches of 8 images' in printed
    assert 'student after x teacher: CKA ' in printed
    assert min(Image.open(tmp_path / 'cka/cka.png').size) > 800

    values = read_csv(tmp_path / 'cka')
    panels = {(model_1, model_2) for model_1, _, model_2, _ in values}
    whose = ('student before', 'student after', 'teacher')
    assert panels == {(w, w) for w in whose} | {(w, whose[2]) for w in whose}
    assert len(values) == 5 * 4 * 4

    from mmpretrain import get_model

    images = sorted((tiny_data / 'val').glob('*/*.png'))
    inputs = np.stack([np.asarray(Image.open(image)) for image in images])
    inputs = torch.tensor(inputs).permute(0, 3, 1, 2)
    inputs = (inputs.float() - 127) / 64
    student = get_model(
        str(trained / 'student.py'), pretrained=str(trained / 'student.pth')
    )
    teacher = build_model(Config.fromfile(tiny_config).teacher, 'teacher')
    teacher.load_state_dict(torch.load(teacher_ckpt))
    s = features(student, inputs, ['backbone.layer2', 'backbone.layer4'])
    t = features(teacher, inputs, ['backbone.layers.0', 'backbone.layers.2'])
    for left, x in s.items():
        for right, y in t.items():
            expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
            found = values['student after', left, 'teacher', right]
            assert found == pytest.approx(expected.item(), abs=1e-4)


def test_student_may_have_started_from_a_checkpoint(
    trained, tiny_config, teacher_ckpt, run, tmp_path
):
    checkpoint = trained / 'epoch_1.pth'
    code, printed = run(
        *(tiny_config, checkpoint, '--before', checkpoint),
        *('--batch-size', 4, '--out', tmp_path),
        *('--cfg-options', f'model.teacher_ckpt={teacher_ckpt}'),
    )
    assert code == 0, printed
    values = read_csv(tmp_path)
    across = [
        {key[1:]: cka for key, cka in values.items() if key[0] == whose}
        for whose in ('student before', 'student after')
    ]
    blocks = [f'backbone.layer{i}.{j}' for i in (1, 2, 3, 4) for j in (0, 1)]
    assert {key[0] for key in across[0]} == set(blocks)
    for block in blocks:
        key = (block, 'teacher', 'backbone.layers.3')
        assert across[0][key] == across[1][key]


def test_same_seed_gives_the_same_values(plain, run, tmp_path):
    options = ('--batch-size', 4, '--num-batches', 1, '--layers', r'layer\d$')
    written = []
    for index, seed in enumerate((3, 3, 4)):
        out = tmp_path / str(index)
        code, printed = run(
            *plain, *plain, *options, '--seed', seed, '--out', out
        )
        assert code == 0, printed
        written.append(read_csv(out))
    assert written[0] == written[1] != written[2]
    # A model and its twin: all three panels are alike.
    whose = [(f'student {i}', f'student {j}') for i, j in ((1, 1), (1, 2))]
    values = {
        written[0][a, 'backbone.layer1', b, 'backbone.layer3']
        for a, b in whose
    }
    assert len(values) == 1


def test_teachers_that_see_the_images_are_shown(
    tool, tiny_config, teacher_ckpt, capsys
):
    cfg = Config.fromfile(tiny_config)
    init_default_scope('mmpretrain')
    live = dict(model=cfg.teacher, ckpt=str(teacher_ckpt))
    stored = dict(type='mmcakd.InMemoryTargets', records=dict(x=[[0.0]]))
    cfg.model.pop('teacher'), cfg.model.pop('teacher_ckpt')
    cfg.model.teachers = dict(
        vit=live, twin=live, deep=live | dict(inputs='depth'), kept=stored
    )
    preprocessor = build_model(cfg.student, 'student').data_preprocessor
    shown = tool.teachers_in(cfg, preprocessor)
    assert [subject.name for subject in shown] == ['vit', 'twin']
    # Each student with each of them.
    for subject in (both := shown[:1] * 2 + shown):
        subject.layers = ['layer']
    panels = tool.make_panels(both, torch.zeros(4, 4))
    assert [p.columns.name for p in panels[4:]] == [
        'vit',
        'vit',
        'twin',
        'twin',
    ]
    printed = capsys.readouterr().out
    assert 'kept is left out' in printed and 'deep is left out' in printed


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['{cfg}', 'nowhere.pth'], 'there is no checkpoint at nowhere.pth'),
        (['{cfg}'], 'names no checkpoint'),
        (['{tiny}'], 'needs the checkpoint of its student'),
        (['{ckpt}', '{cfg}'], 'follows no config'),
        (['{tiny}', '{ckpt}'], 'teacher has no weights'),
        (['{cfg}', '{ckpt}', '--before', '{ckpt}'], '--before goes with one'),
        (['{cfg}', '{ckpt}'], '8 images, fewer than a batch of 32'),
        (['{cfg}', '{ckpt}', '--layers', 'no_such'], 'in no module of'),
        (
            ['{cfg}', '{ckpt}', '--layers', 'relu', '--batch-size', '4'],
            'runs more than once a forward',
        ),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments, message, plain, tiny_config, run, tmp_path
):
    cfg, ckpt = plain
    names = dict(cfg=cfg, ckpt=ckpt, tiny=tiny_config)
    code, printed = run(
        *(word.format(**names) for word in arguments), '--out', tmp_path
    )
    assert code == 1
    assert message in printed
    assert not list(tmp_path.iterdir())


def test_three_images_are_too_few(plain, run, capsys):
    with pytest.raises(SystemExit):
        run(*plain, '--batch-size', 3)
    assert 'at least 4 images' in capsys.readouterr().err


def test_config_that_names_its_weights_needs_no_checkpoint(
    tool, plain, tmp_path
):
    cfg = Config.fromfile(plain[0])
    cfg.teacher_ckpt = str(plain[1])
    cfg.dump(tmp_path / 'teacher.py')
    args = Namespace(
        models=[str(tmp_path / 'teacher.py')], before=None, cfg_options={}
    )
    (subject,), _ = tool.build_subjects(args)
    weights = torch.load(plain[1])['state_dict']['head.fc.weight']
    assert torch.equal(subject.model.head.fc.weight, weights)


@pytest.mark.parametrize(
    'backbone, blocks',
    [
        ('resnet', [f'layer{i}.{j}' for i in (1, 2, 3, 4) for j in (0, 1)]),
        ('convnext', [f'stages.{i}.0' for i in range(4)]),
        (
            'swin',
            [f'stages.{i}.blocks.0' for i in (0, 1)]
            + [f'stages.{i}.blocks.{j}' for i in (2, 3) for j in (0, 1)],
        ),
        ('vit', [f'layers.{i}' for i in range(6)]),
    ],
)
def test_blocks_of_a_family_are_found(tool, tiny, backbone, blocks):
    model = tiny.build(tiny.classifier(getattr(tiny, backbone)()))
    assert tool.find_blocks(model) == [f'backbone.{name}' for name in blocks]


@pytest.mark.parametrize(
    'backbone, count, last',
    [
        (dict(type='MlpMixer', arch='s'), 8, 'layers.7'),
        (dict(type='MobileNetV2'), 17, 'layer7.0'),
        (
            dict(type='TIMMBackbone', model_name='mobilenetv1_100'),
            13,
            'timm_model.blocks.4.1',
        ),
    ],
)
def test_blocks_of_other_families_are_found(tool, tiny, backbone, count, last):
    init_default_scope('mmpretrain')
    with torch.device('meta'):
        model = tiny.build(
            dict(type='mmpretrain.ImageClassifier', backbone=backbone)
        )
    blocks = tool.find_blocks(model)
    assert len(blocks) == count
    assert blocks[-1] == f'backbone.{last}'


def test_unknown_network_has_to_be_told(tool):
    with pytest.raises(ValueError, match='in a Linear: name them by --layers'):
        tool.find_blocks(torch.nn.Linear(2, 2))
