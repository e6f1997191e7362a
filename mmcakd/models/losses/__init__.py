from .adversarial_loss import AdversarialLoss
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

__all__ = [
    'AdversarialLoss',
    'Attended',
    'CCLoss',
    'CRDLoss',
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
    'enhanced_targets',
    'frequency_view',
    'soft_target_loss',
]
