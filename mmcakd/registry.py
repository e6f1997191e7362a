"""Registries of mmcakd, each a child of MMEngine's root registry.

``mmcakd.X`` resolves from any default scope, and plain names registered here
resolve under ``default_scope = 'mmcakd'``.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
)
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry as MMEngineRegistry

from .arguments import check_on_construction


class Registry(MMEngineRegistry):
    """A registry whose classes check their arguments by annotations."""

    def _register_module(self, module, *args, **kwargs) -> None:
        super()._register_module(module, *args, **kwargs)
        if isinstance(module, type):
            check_on_construction(module)


#: Algorithms, distillers, connectors, losses and data preprocessors.
MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmcakd',
    locations=['mmcakd.models'],
)
#: Recorders.
TASK_UTILS = Registry(
    'task util',
    parent=MMENGINE_TASK_UTILS,
    scope='mmcakd',
    locations=['mmcakd.models'],
)
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmcakd',
    locations=['mmcakd.datasets'],
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmcakd',
    locations=['mmcakd.datasets'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmcakd',
    locations=['mmcakd.engine'],
)
LOOPS = Registry(
    'loop',
    parent=MMENGINE_LOOPS,
    scope='mmcakd',
    locations=['mmcakd.engine'],
)
OPTIM_WRAPPERS = Registry(
    'optimizer wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope='mmcakd',
    locations=['mmcakd.engine'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmcakd',
    locations=['mmcakd.engine'],
)
