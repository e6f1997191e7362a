"""The hooks that every run gets."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmcakd.engine.safeguards import SAFEGUARDS, add_safeguards
from mmcakd.registry import HOOKS

ROOT = Path(__file__).parents[2]


def test_default_runtime_has_them_under_the_same_keys():
    cfg = Config.fromfile(ROOT / 'configs/_base_/default_runtime.py')
    for key, kind in SAFEGUARDS.items():
        assert cfg.default_hooks[key].type == kind
    before = cfg.to_dict()
    add_safeguards(cfg)
    assert cfg.to_dict() == before


@pytest.mark.parametrize('kind', ['mmcakd.CleanStopHook', 'class'])
def test_hook_under_another_name_is_not_added_again(kind):
    hook = HOOKS.get('mmcakd.CleanStopHook') if kind == 'class' else kind
    cfg = Config(dict(custom_hooks=[dict(type=hook, max_hours=1.0)]))
    add_safeguards(cfg)
    assert 'stop' not in cfg.default_hooks
    assert 'seed' in cfg.default_hooks
