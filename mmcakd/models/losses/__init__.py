from .dual_view_loss import DualViewLoss, frequency_view
from .soft_target_loss import SoftTargetLoss, soft_target_loss

__all__ = [
    'DualViewLoss',
    'SoftTargetLoss',
    'frequency_view',
    'soft_target_loss',
]
