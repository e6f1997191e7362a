from .export_student_hook import ExportStudentHook
from .seed_by_epoch_hook import SeedByEpochHook

__all__ = ['ExportStudentHook', 'SeedByEpochHook']
