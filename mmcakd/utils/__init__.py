from .downstream import (
    describe_backbone,
    find_student,
    load_backbone,
    read_downstream_config,
)
from .experiments import (
    config_changes,
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
from .files import replacing, sha256, write_text
from .randomness import seed_generators

__all__ = [
    'config_changes',
    'describe_backbone',
    'describe_commit',
    'describe_machine',
    'draw_curves',
    'export_student',
    'find_checkpoint',
    'find_student',
    'load_backbone',
    'markdown_table',
    'mean_gain',
    'mean_std',
    'read_curve',
    'read_downstream_config',
    'recorded_config',
    'replacing',
    'seed_generators',
    'sha256',
    'student_config',
    'student_state_dict',
    'write_text',
]
