from .adversarial_distill import AdversarialDistill
from .cross_arch_distill import CrossArchDistill

__all__ = ['AdversarialDistill', 'CrossArchDistill']
