"""How a data preprocessor normalises its batches."""

import torch
from torch import nn


def is_rgb(preprocessor: nn.Module) -> bool:
    """Whether a preprocessor turns BGR images into RGB."""
    # The switch of MMPretrain's preprocessor; of MMEngine's, which is also
    # MMDetection's; and of MMSegmentation's.
    switches = ('to_rgb', '_channel_conversion', 'channel_conversion')
    return any(getattr(preprocessor, switch, False) for switch in switches)


def read_normalisation(
    preprocessor: nn.Module, like: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read what is subtracted from the channels, and what divides them.

    Args:
        preprocessor (nn.Module): Normalises, or not.
        like (nn.Module): Has a ``mean`` and a ``std`` ``(3, 1, 1)``, models
            of the 0 and 1 of a preprocessor that does not.

    Returns:
        tuple[Tensor, Tensor]: Mean and standard deviation.
    """
    if getattr(preprocessor, '_enable_normalize', False):
        return preprocessor.mean, preprocessor.std
    return torch.zeros_like(like.mean), torch.ones_like(like.std)
