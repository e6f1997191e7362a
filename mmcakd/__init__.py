"""Cross-architecture knowledge distillation for OpenMMLab."""

from mmengine.config.utils import MODULE2PACKAGE

from . import compat
from .version import __version__

compat.apply()

# Lets other projects inherit our configs: `_base_ = 'mmcakd::scalekd/...py'`.
MODULE2PACKAGE.setdefault('mmcakd', 'mmcakd')

__all__ = ['__version__']
