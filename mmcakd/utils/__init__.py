from .downstream import (
    describe_backbone,
    find_student,
    load_backbone,
    read_downstream_config,
)
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
    'describe_backbone',
    'describe_commit',
    'describe_machine',
    'draw_curves',
    'export_student',
    'find_checkpoint',
    'find_student',
    'load_backbone',
    'recorded_config',
    'markdown_table',
    'mean_gain',
    'mean_std',
    'read_curve',
    'read_downstream_config',
    'student_config',
    'student_state_dict',
]
