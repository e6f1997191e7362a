from .build import build_model, read_model_cfg
from .checkpoint import check_finite, load_weights
from .reader import check_resumable, read_checkpoint, read_state_dict
from .teacher import Teacher

__all__ = [
    'Teacher',
    'build_model',
    'check_finite',
    'check_resumable',
    'load_weights',
    'read_model_cfg',
    'read_checkpoint',
    'read_state_dict',
]
