from .hooks import *  # noqa: F403
from .launcher import prepare_cpu_launcher
from .optim_wrappers import *  # noqa: F403

__all__ = ['prepare_cpu_launcher']
