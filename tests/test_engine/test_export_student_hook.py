from types import SimpleNamespace

import pytest
from mmengine.hooks import CheckpointHook

from mmcakd.engine.hooks import ExportStudentHook


def test_hook_without_checkpoints_is_refused_before_training():
    with pytest.raises(ValueError, match='CheckpointHook'):
        ExportStudentHook().before_train(SimpleNamespace(hooks=[]))


def test_hook_for_the_best_needs_save_best():
    runner = SimpleNamespace(hooks=[CheckpointHook()])
    with pytest.raises(ValueError, match='save_best'):
        ExportStudentHook(which='best').before_train(runner)
    ExportStudentHook().before_train(runner)
    runner.hooks.append(CheckpointHook(save_best='auto'))
    ExportStudentHook(which='best').before_train(runner)
