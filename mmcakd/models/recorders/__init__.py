from .logits_recorder import LogitsRecorder
from .stage_outputs_recorder import StageOutputsRecorder, unknown_tap

__all__ = ['LogitsRecorder', 'StageOutputsRecorder', 'unknown_tap']
