from .assistant_accuracy_hook import AssistantAccuracyHook
from .export_student_hook import ExportStudentHook
from .loss_weight_schedule_hook import LossWeightScheduleHook
from .recipe_check_hook import RecipeCheckHook
from .seed_by_epoch_hook import SeedByEpochHook
from .training_set_hook import TrainingSetHook

__all__ = [
    'AssistantAccuracyHook',
    'ExportStudentHook',
    'LossWeightScheduleHook',
    'RecipeCheckHook',
    'SeedByEpochHook',
    'TrainingSetHook',
]
