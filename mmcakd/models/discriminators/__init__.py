from .base import BaseDiscriminator
from .patch_discriminator import PatchDiscriminator
from .token_discriminator import TokenDiscriminator

__all__ = ['BaseDiscriminator', 'PatchDiscriminator', 'TokenDiscriminator']
