from .hooks import *  # noqa: F403
from .launcher import prepare_cpu_launcher
from .loops import ResumableEpochLoop, ResumableIterLoop
from .optim_wrappers import *  # noqa: F403
from .resume import find_newest_checkpoint
from .schedule import check_schedule, rescale_epochs

__all__ = [
    'ResumableEpochLoop',
    'ResumableIterLoop',
    'check_schedule',
    'find_newest_checkpoint',
    'prepare_cpu_launcher',
    'rescale_epochs',
]
