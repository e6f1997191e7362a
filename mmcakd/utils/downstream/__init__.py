"""From a distilled student to a detector or segmentor with its backbone."""

from .backbone import LoadedBackbone, describe_backbone, load_backbone
from .config import read_downstream_config, revert_sync_bn
from .report import tabulate, write_report
from .run import (
    SCRATCH,
    DownstreamHook,
    DownstreamRun,
    mark_run,
    plan_run,
    read_metrics,
    run_config,
    train_run,
)
from .student import find_student

__all__ = [
    'SCRATCH',
    'DownstreamHook',
    'DownstreamRun',
    'LoadedBackbone',
    'describe_backbone',
    'find_student',
    'load_backbone',
    'mark_run',
    'plan_run',
    'read_downstream_config',
    'read_metrics',
    'revert_sync_bn',
    'run_config',
    'tabulate',
    'train_run',
    'write_report',
]
