"""Configs that are named, in whatever form they are written."""

from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config


def read_config(name: str | Path) -> Config:
    """Read a config of a package or of a file.

    Args:
        name (str | Path): A file, or the config of an installed package, such
            as ``'mmcakd::baselines/dkd.py'``.

    Returns:
        Config: With names, in text and everywhere, where a config in pure
        Python has classes, as it will be in checkpoints.

    Raises:
        FileNotFoundError: There is no such config.

    Examples:
        >>> import mmcakd
        >>> from mmcakd.utils import read_config
        >>> cfg = read_config('mmcakd::baselines/dkd.py')
        >>> cfg.distiller.distill_losses.loss_kd.type
        'mmcakd.DKDLoss'
    """
    return name_types(
        get_config(name) if '::' in str(name) else Config.fromfile(name)
    )


def name_types(cfg: Config) -> Config:
    """Put names where a config in pure Python has classes.

    Args:
        cfg (Config): One in text passes as it is.
    """
    # What such a config imports is not a part of it.
    if getattr(cfg, '_imported_names', None):
        return Config(cfg.to_dict(), filename=cfg.filename)
    return cfg
