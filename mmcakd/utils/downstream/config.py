"""The config of a detector or segmentor."""

from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from ..configs import read_config

_SYNC_BN = ('SyncBN', 'MMSyncBN')


def read_downstream_config(
    path: str | Path, options: dict | None = None
) -> Config:
    """Read the config of a detector or segmentor.

    Args:
        path (str | Path): The config file.
        options (dict, optional): Settings that override it.

    Returns:
        Config: The config.

    Raises:
        ImportError: MMDetection, MMSegmentation or the compiled operators of
            MMCV are needed and missing.
        ValueError: ``model.backbone`` does not say where its weights go.
    """
    try:
        cfg = read_config(path)
    except ModuleNotFoundError as error:
        missing = [name for name in ('mmdet', 'mmseg') if not find_spec(name)]
        if not missing:
            raise
        raise ImportError(_set_up(path, str(error))) from error
    cfg.merge_from_dict(options or {})
    scope = cfg.get('default_scope')
    if scope in ('mmdet', 'mmseg'):
        if not find_spec(scope):
            raise ImportError(_set_up(path, f'{scope} is not installed'))
        if not find_spec('mmcv._ext'):
            raise ImportError(
                _set_up(path, 'mmcv is installed without its operators')
            )

    backbone = cfg.get('model', {}).get('backbone')
    init_cfg = (backbone or {}).get('init_cfg')
    if not isinstance(init_cfg, dict) or not init_cfg.get('prefix'):
        raise ValueError(
            f'{path} does not say how model.backbone takes the weights of a '
            'classifier, which are called backbone.*: it needs init_cfg=dict('
            "type='Pretrained', checkpoint='student.pth', prefix='backbone.')"
        )
    if cfg.get('load_from'):
        raise ValueError(
            f"load_from of {path} would replace the student's weights: set "
            'it to None'
        )
    if cfg.get('val_evaluator') is None:
        raise ValueError(f'{path} does not evaluate: give it a val_evaluator')
    return cfg


def _set_up(path: str | Path, problem: str) -> str:
    return (
        f'{path} needs MMDetection or MMSegmentation and the compiled '
        f'operators of MMCV ({problem}): bash tools/setup_downstream.sh '
        'installs them'
    )


def revert_sync_bn(cfg: Config) -> bool:
    """Replace synchronised BatchNorm in a model's config by the plain one.

    It works between processes on accelerators only. The weights have the same
    names.

    Args:
        cfg (Config): Changed in place.

    Returns:
        bool: Whether there was any.
    """
    found = False

    def visit(node) -> None:
        nonlocal found
        if isinstance(node, dict):
            if node.get('type') in _SYNC_BN:
                node['type'] = 'BN'
                found = True
            node = node.values()
        elif not isinstance(node, (list, tuple)):
            return
        for item in node:
            visit(item)

    visit(cfg.get('model'))
    return found
