"""The documents tell the truth."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.structures import DataSample
from PIL import Image

from mmcakd.registry import MODELS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / 'README.md',
    *sorted((ROOT / 'docs').glob('*.md')),
    *sorted((ROOT / 'configs').glob('*/README.md')),
]
BLOCK = re.compile(r'```(\w+)\n(.*?)```', re.DOTALL)


def blocks(document: Path, language: str) -> list[str]:
    found = BLOCK.findall(document.read_text('utf-8'))
    return [text for kind, text in found if kind == language]


def commands() -> list[list[str]]:
    found = []
    for document in DOCUMENTS:
        for block in blocks(document, 'bash'):
            joined = block.replace('\\\n', ' ')
            for line in filter(None, joined.splitlines()):
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
                    words.pop(0)
                if words:
                    found.append(words)
    return found


@pytest.mark.parametrize('words', commands(), ids=' '.join)
def test_every_command_names_files_that_exist(words):
    for word in words:
        named = word.startswith(
            ('tools/', 'configs/', 'demo/', 'docs/', 'tests/')
        )
        if named and '*' not in word:
            assert (ROOT / word).exists(), f'{word} of {shlex.join(words)}'


@cache
def usage(*tool: str) -> str:
    return subprocess.run(
        [sys.executable, *tool, '--help'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    'words',
    [words for words in commands() if words[0] == 'python'],
    ids=' '.join,
)
def test_every_python_command_has_only_known_options(words):
    # A file, or a module.
    tool = words[1:3] if words[1] == '-m' else words[1:2]
    for word in words[1 + len(tool) :]:
        if word.startswith('--'):
            assert word in usage(*tool), f'{tool} has no option {word}'


def test_every_relative_link_leads_somewhere():
    link = re.compile(r'\]\((?!https?://|#)([^)#]+)')
    for document in DOCUMENTS:
        for target in link.findall(document.read_text('utf-8')):
            assert (document.parent / target).exists(), (
                f'{document.relative_to(ROOT)} links to {target}'
            )


def test_the_readmes_pair_and_method_make_a_run(tmp_path):
    code, _ = blocks(ROOT / 'README.md', 'python')
    path = tmp_path / 'run.py'
    path.write_text(code)
    cfg = Config.fromfile(path)
    assert cfg.model.type == 'mmcakd.CrossArchDistill'
    loss = cfg.model.distiller.distill_losses.loss_kd
    assert loss.type == 'mmcakd.DKDLoss'
    assert cfg.train_dataloader.dataset.type == 'CIFAR100'


def test_the_readmes_own_pair_trains(tmp_path, monkeypatch):
    """The config in the README is complete, and one step of it runs."""
    _, code = blocks(ROOT / 'README.md', 'python')
    teacher = tmp_path / 'configs' / 'my_teacher.py'
    teacher.parent.mkdir()
    teacher.write_text(
        'model = dict(type="ImageClassifier", '
        'backbone=dict(type="VisionTransformer", arch="deit-tiny"), '
        'head=dict(type="VisionTransformerClsHead", num_classes=37, '
        'in_channels=192))\n'
        'default_scope = "mmpretrain"\n'
    )
    for split in ('train', 'val'):
        folder = tmp_path / 'data' / 'pets' / split / 'abyssinian'
        folder.mkdir(parents=True)
        Image.new('RGB', (300, 250)).save(folder / '0.png')
    pair = tmp_path / 'configs' / 'pair.py'
    pair.write_text(code)
    monkeypatch.chdir(tmp_path)

    cfg = Config.fromfile(pair)
    weights = cfg.model.pop('teacher_ckpt')
    assert weights == 'work_dirs/my_teacher.pth'
    cfg.model.teacher_ckpt = 'random'
    cfg.model.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(cfg.model)
    samples = [DataSample().set_gt_label(label) for label in (3, 36)]
    losses = model.train().loss(torch.rand(2, 3, 224, 224), samples)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)

    from mmpretrain.registry import DATASETS

    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        data = DATASETS.build(loader.dataset)
        assert len(data) == 1
        assert data[0]['inputs'].shape == (3, 224, 224)


def rows_of_checks() -> list[tuple[str, str]]:
    row = re.compile(r'\]\(\.\./(tests/\S+\.py)\) `(\w+)` \|$', re.MULTILINE)
    return row.findall((ROOT / 'docs/checks.md').read_text('utf-8'))


@pytest.mark.parametrize(('path', 'test'), rows_of_checks())
def test_every_check_that_is_told_has_its_test(path, test):
    assert f'\ndef {test}(' in (ROOT / path).read_text('utf-8')


def test_every_row_of_checks_names_a_test():
    text = (ROOT / 'docs/checks.md').read_text('utf-8')
    rows = [line for line in text.splitlines() if line.startswith('| ')]
    tables = text.count('| --- | --- | --- |')
    assert len(rows) == len(rows_of_checks()) + 2 * tables
