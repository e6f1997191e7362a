"""Cross-architecture knowledge distillation for OpenMMLab."""

from . import compat

compat.apply()

from .version import __version__  # noqa: E402

__all__ = ['__version__']
