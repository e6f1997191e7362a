from .checkpoints import newest_checkpoint, pointed_checkpoint
from .command_line import Command
from .config_text import read_config_text, read_dumped_config
from .configs import read_config
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
    recorded_student,
    student_config,
    student_state_dict,
)
from .files import (
    FolderLock,
    read_json,
    read_json_lines,
    replacing,
    sha256,
    write_json,
    write_text,
)
from .randomness import seed_generators

__all__ = [
    'Command',
    'FolderLock',
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
    'newest_checkpoint',
    'pointed_checkpoint',
    'read_config',
    'read_config_text',
    'read_curve',
    'read_downstream_config',
    'read_dumped_config',
    'read_json',
    'read_json_lines',
    'recorded_config',
    'recorded_student',
    'replacing',
    'seed_generators',
    'sha256',
    'student_config',
    'student_state_dict',
    'write_json',
    'write_text',
]
