from ..attention import Attended
from .adversarial_loss import AdversarialLoss
from .binary_target_loss import BinaryTargetLoss, binary_target_loss
from .cc_loss import CCLoss
from .crd_loss import CRDLoss
from .dist_loss import DISTLoss
from .dkd_loss import DKDLoss
from .dual_view_loss import DualViewLoss, frequency_view
from .info_nce_loss import InfoNCELoss
from .mse_loss import MSELoss
from .ofa_loss import OFALoss, enhanced_targets
from .pca_loss import PCALoss
from .rkd_loss import RKDLoss
from .router_loss import RouterLoss
from .soft_target_loss import SoftTargetLoss, soft_target_loss
from .traits import (
    ComparesClasses,
    ComparesImages,
    ComparesPlaces,
    NeedsHardLabels,
    ReadsLogits,
    compares_classes,
    compares_places,
    is_of_mmrazor,
    needs_hard_labels,
    reads_logits,
)

__all__ = [
    'AdversarialLoss',
    'Attended',
    'BinaryTargetLoss',
    'CCLoss',
    'CRDLoss',
    'ComparesClasses',
    'ComparesImages',
    'ComparesPlaces',
    'DISTLoss',
    'DKDLoss',
    'DualViewLoss',
    'InfoNCELoss',
    'MSELoss',
    'NeedsHardLabels',
    'OFALoss',
    'PCALoss',
    'RKDLoss',
    'ReadsLogits',
    'RouterLoss',
    'SoftTargetLoss',
    'binary_target_loss',
    'compares_classes',
    'compares_places',
    'enhanced_targets',
    'frequency_view',
    'is_of_mmrazor',
    'needs_hard_labels',
    'reads_logits',
    'soft_target_loss',
]
