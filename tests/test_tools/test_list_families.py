"""The page of model families is what the code knows."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from mmcakd.models.stages import FAMILIES

REPO = Path(__file__).resolve().parents[2]
TOOL = REPO / 'tools' / 'analysis_tools' / 'list_families.py'
PAGE = (REPO / 'docs' / 'families.md').read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith('| `')]


@pytest.fixture(scope='module')
def tool():
    spec = spec_from_file_location('list_families', TOOL)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_what_the_tool_prints():
    done = subprocess.run(
        [sys.executable, TOOL], capture_output=True, text=True, check=True
    )
    assert done.stdout == PAGE, (
        'run python tools/analysis_tools/list_families.py --write'
    )


def test_every_entry_has_one_row():
    assert len(ROWS) == len(FAMILIES)


def test_every_backbone_of_mmpretrain_is_in_the_page(tool):
    import mmpretrain.models  # noqa: F401
    from mmpretrain.registry import MODELS

    section = PAGE.partition('## MMPretrain')[2].partition('## timm')[0]
    # It holds a network of timm.
    backbones = {
        cls.__name__
        for cls in MODELS.module_dict.values()
        if cls.__module__.startswith('mmpretrain.models.backbones.')
    } - {'TIMMBackbone'}
    assert len(backbones) > 60
    for name in backbones:
        assert f'`{name}`' in section, name
    assert '`mmpretrain.TIMMBackbone`' in PAGE


@pytest.mark.parametrize(
    ('key', 'cells'),
    [
        (
            'SwinTransformer',
            [
                '`stages.0.blocks.1`, `stages.1.blocks.1`, '
                '`stages.2.blocks.5`, `norm3`',
                '`stages.3.blocks.1`',
                'NLC',
                '0',
                'tokens',
                'yes',
            ],
        ),
        (
            'HRNet',
            ['`layer1`, `stage2`, `stage3`, `stage4`', '', 'NCHW', '', 'map']
            + ['yes'],
        ),
        (
            'timm.XceptionAligned',
            [
                '`blocks.1.stack.conv2`, `blocks.2.stack.conv2`, '
                '`blocks.11.stack.conv2`, `blocks.12`',
                '',
                'NCHW',
                '',
                'map',
                'no: they end inside blocks, whose shortcuts pass them by',
            ],
        ),
        (
            'RevVisionTransformer',
            ['`fusion_layer`', '', 'NLC', '0', 'tokens']
            + ['no: there is no other stage'],
        ),
    ],
)
def test_row_tells_taps_layout_tokens_head_and_tail(tool, key, cells):
    row = tool.row(key, [key])
    assert [cell.strip() for cell in row.split('|')[3:-1]] == cells


def test_values_are_named_once_if_they_agree(tool):
    assert tool.merge([1, 1, 1, 1]) == '1'
    assert tool.merge(['', '', 0, 0]) == 'none, none, 0, 0'
