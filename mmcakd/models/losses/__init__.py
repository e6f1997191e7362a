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
from .pca_loss import Attended, PCALoss
from .rkd_loss import RKDLoss
from .router_loss import RouterLoss
from .soft_target_loss import SoftTargetLoss, soft_target_loss
from .traits import ComparesClasses, ComparesImages, compares_classes

__all__ = [
    'AdversarialLoss',
    'Attended',
    'BinaryTargetLoss',
    'CCLoss',
    'CRDLoss',
    'ComparesClasses',
    'ComparesImages',
    'DISTLoss',
    'DKDLoss',
    'DualViewLoss',
    'InfoNCELoss',
    'MSELoss',
    'OFALoss',
    'PCALoss',
    'RKDLoss',
    'RouterLoss',
    'SoftTargetLoss',
    'binary_target_loss',
    'compares_classes',
    'enhanced_targets',
    'frequency_view',
    'soft_target_loss',
]
