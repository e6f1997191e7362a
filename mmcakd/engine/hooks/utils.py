"""What the hooks share."""

from collections.abc import Iterator

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, inside of DDP or not."""
    return model.module if is_model_wrapper(model) else model


def optim_wrappers(
    wrapper: OptimWrapper | OptimWrapperDict,
) -> Iterator[OptimWrapper]:
    """The wrapper, or each of several, the one that counts steps first."""
    if isinstance(wrapper, OptimWrapperDict):
        yield from wrapper.values()
    else:
        yield wrapper
