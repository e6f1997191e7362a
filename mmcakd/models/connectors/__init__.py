from ..attention import attend
from .assistant import AssistantConnector
from .base import BaseConnector
from .cap import CAPConnector
from .fitnet import FitNetConnector
from .glp import GLPConnector
from .inverse_pca import InversePCAConnector
from .ofa_head import OFAHeadConnector
from .pca import PCAConnector
from .pooled_embedding import PooledEmbedding
from .router import RouterConnector
from .teacher_replay import TeacherReplay

__all__ = [
    'AssistantConnector',
    'BaseConnector',
    'CAPConnector',
    'FitNetConnector',
    'GLPConnector',
    'InversePCAConnector',
    'OFAHeadConnector',
    'PCAConnector',
    'PooledEmbedding',
    'RouterConnector',
    'TeacherReplay',
    'attend',
]
