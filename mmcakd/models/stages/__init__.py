from .families import (
    FAMILIES,
    TIMM_FAMILIES,
    Tap,
    check_blocks,
    find_backbone,
    find_taps,
    split_blocks,
)
from .layout import to_map, to_tokens

__all__ = [
    'FAMILIES',
    'TIMM_FAMILIES',
    'Tap',
    'check_blocks',
    'find_backbone',
    'find_taps',
    'split_blocks',
    'to_map',
    'to_tokens',
]
