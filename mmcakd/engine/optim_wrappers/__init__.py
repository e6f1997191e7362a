from .adversarial_optim_wrapper import (
    AdversarialOptimWrapper,
    AdversarialOptimWrapperConstructor,
)
from .bf16_optim_wrapper import BF16OptimWrapper

__all__ = [
    'AdversarialOptimWrapper',
    'AdversarialOptimWrapperConstructor',
    'BF16OptimWrapper',
]
