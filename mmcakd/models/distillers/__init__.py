from .cross_arch_distiller import CrossArchDistiller

__all__ = ['CrossArchDistiller']
