from .build import build_model, read_model_cfg
from .checkpoint import load_weights, read_checkpoint, read_state_dict
from .teacher import Precision, Teacher

__all__ = [
    'Precision',
    'Teacher',
    'build_model',
    'load_weights',
    'read_model_cfg',
    'read_checkpoint',
    'read_state_dict',
]
