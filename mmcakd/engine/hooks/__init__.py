from .assistant_accuracy_hook import AssistantAccuracyHook
from .checkpoint_hook import SafeCheckpointHook
from .clean_stop_hook import CleanStopHook
from .export_student_hook import ExportStudentHook
from .loss_weight_schedule_hook import LossWeightScheduleHook
from .non_finite_hook import NonFiniteHook
from .recipe_check_hook import RecipeCheckHook
from .seed_by_epoch_hook import SeedByEpochHook
from .training_set_hook import TrainingSetHook

__all__ = [
    'AssistantAccuracyHook',
    'CleanStopHook',
    'ExportStudentHook',
    'LossWeightScheduleHook',
    'NonFiniteHook',
    'RecipeCheckHook',
    'SafeCheckpointHook',
    'SeedByEpochHook',
    'TrainingSetHook',
]
