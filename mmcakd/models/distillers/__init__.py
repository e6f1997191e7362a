from .cross_arch_distiller import CrossArchDistiller
from .references import Reference
from .step import Step

__all__ = ['CrossArchDistiller', 'Reference', 'Step']
