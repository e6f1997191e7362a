from .build import build_model, find_scope, read_model_cfg
from .checkpoint import check_finite, fit_weights, load_weights
from .reader import check_resumable, read_checkpoint, read_state_dict
from .sources import (
    LiveTeacher,
    build_teachers,
    read_teachers,
    teachers_of,
)
from .stored import InMemoryTargets, StoredTeacher
from .teacher import Precision, Teacher
from .weights import TeacherWeights, build_teacher

__all__ = [
    'InMemoryTargets',
    'LiveTeacher',
    'Precision',
    'StoredTeacher',
    'Teacher',
    'TeacherWeights',
    'build_model',
    'build_teacher',
    'build_teachers',
    'check_finite',
    'check_resumable',
    'find_scope',
    'fit_weights',
    'load_weights',
    'read_model_cfg',
    'read_checkpoint',
    'read_state_dict',
    'read_teachers',
    'teachers_of',
]
