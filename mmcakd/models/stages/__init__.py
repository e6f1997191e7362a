from .families import FAMILIES, find_backbone, find_family, find_taps
from .frozen_statistics import frozen_statistics
from .layout import (
    StageTokens,
    read_grid,
    to_layout,
    to_map,
    to_stage_tokens,
    to_tokens,
)
from .tail import Tail
from .tails import build_tail
from .taps import Family, Tap, check_blocks, split_blocks

__all__ = [
    'FAMILIES',
    'Family',
    'StageTokens',
    'Tail',
    'Tap',
    'build_tail',
    'check_blocks',
    'find_backbone',
    'find_family',
    'find_taps',
    'frozen_statistics',
    'read_grid',
    'split_blocks',
    'to_layout',
    'to_map',
    'to_stage_tokens',
    'to_tokens',
]
