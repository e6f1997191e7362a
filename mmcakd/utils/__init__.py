from .export import (
    export_student,
    find_checkpoint,
    student_config,
    student_state_dict,
)

__all__ = [
    'export_student',
    'find_checkpoint',
    'student_config',
    'student_state_dict',
]
