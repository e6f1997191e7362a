from .experiments import (
    describe_commit,
    describe_machine,
    draw_curves,
    markdown_table,
    mean_gain,
    mean_std,
    read_curve,
)
from .export import (
    export_student,
    find_checkpoint,
    recorded_config,
    student_config,
    student_state_dict,
)

__all__ = [
    'describe_commit',
    'describe_machine',
    'draw_curves',
    'export_student',
    'find_checkpoint',
    'recorded_config',
    'markdown_table',
    'mean_gain',
    'mean_std',
    'read_curve',
    'student_config',
    'student_state_dict',
]
