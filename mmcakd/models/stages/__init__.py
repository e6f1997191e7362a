from .families import FAMILIES, find_backbone, find_family, find_taps
from .layout import (
    StageTokens,
    read_grid,
    to_layout,
    to_map,
    to_stage_tokens,
    to_tokens,
)
from .taps import Family, Tap, check_blocks, split_blocks

__all__ = [
    'FAMILIES',
    'Family',
    'StageTokens',
    'Tap',
    'check_blocks',
    'find_backbone',
    'find_family',
    'find_taps',
    'read_grid',
    'split_blocks',
    'to_layout',
    'to_map',
    'to_stage_tokens',
    'to_tokens',
]
