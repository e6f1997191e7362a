from .hooks import *  # noqa: F403
from .launcher import prepare_cpu_launcher
from .optim_wrappers import *  # noqa: F403
from .schedule import check_schedule, rescale_epochs

__all__ = ['check_schedule', 'prepare_cpu_launcher', 'rescale_epochs']
