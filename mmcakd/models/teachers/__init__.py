from .build import build_model, read_model_cfg
from .checkpoint import load_weights, read_checkpoint, read_state_dict
from .tails import Tail, build_tail
from .teacher import Teacher

__all__ = [
    'Tail',
    'Teacher',
    'build_model',
    'build_tail',
    'load_weights',
    'read_model_cfg',
    'read_checkpoint',
    'read_state_dict',
]
