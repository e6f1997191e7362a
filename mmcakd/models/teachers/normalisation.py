"""How a data preprocessor normalises its batches."""

import torch
from torch import nn


def is_rgb(preprocessor: nn.Module) -> bool:
    """Whether a preprocessor turns BGR images into RGB."""
    # MMPretrain's preprocessor names the switch; MMEngine's and MMDetection's
    # keep it under another name.
    return bool(
        getattr(preprocessor, 'to_rgb', False)
        or getattr(preprocessor, '_channel_conversion', False)
    )


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
