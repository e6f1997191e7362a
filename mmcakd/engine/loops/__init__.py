from .train_loops import (
    VALIDATED,
    ResumableEpochLoop,
    ResumableIterLoop,
    make_resumable,
)

__all__ = [
    'VALIDATED',
    'ResumableEpochLoop',
    'ResumableIterLoop',
    'make_resumable',
]
