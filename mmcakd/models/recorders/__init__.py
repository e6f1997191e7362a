from ..attention import QKV, Windows, find_windows
from .attention_recorder import QKVRecorder
from .logits_recorder import LogitsRecorder
from .stage_outputs_recorder import StageOutputsRecorder, unknown_tap

__all__ = [
    'QKV',
    'LogitsRecorder',
    'QKVRecorder',
    'StageOutputsRecorder',
    'Windows',
    'find_windows',
    'unknown_tap',
]
