from .cka import MinibatchCKA, linear_gram, unbiased_hsic
from .corruptions import add_noise, occlude

__all__ = [
    'MinibatchCKA',
    'add_noise',
    'linear_gram',
    'occlude',
    'unbiased_hsic',
]
