"""Cross-architecture knowledge distillation for OpenMMLab."""

from .stacks import check_versions
from .version import __version__

# First of all: what it finds could not be told once an import has failed.
check_versions()

from mmengine.config.utils import MODULE2PACKAGE  # noqa: E402

from . import compat  # noqa: E402

compat.apply()

# Lets other projects inherit our configs: `_base_ = 'mmcakd::scalekd/...py'`.
MODULE2PACKAGE.setdefault('mmcakd', 'mmcakd')

__all__ = ['__version__']
