"""Mixed precision without an accelerator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmcakd.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Run the forward in bfloat16 on a processor.

    MMEngine's ``AmpOptimWrapper`` refuses to work on a CPU. bfloat16 has the
    exponents of float32, so that no loss scaling is needed.

    Args:
        *args: See :class:`mmengine.optim.OptimWrapper`.
        **kwargs: Likewise.

    Examples:
        >>> import torch
        >>> from mmcakd.engine.optim_wrappers import BF16OptimWrapper
        >>> net = torch.nn.Linear(2, 2)
        >>> wrapper = BF16OptimWrapper(torch.optim.SGD(net.parameters(), .1))
        >>> with wrapper.optim_context(net):
        ...     net(torch.rand(1, 2)).dtype
        torch.bfloat16
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast besides what the parent enters."""
        with (
            super().optim_context(model),
            torch.autocast('cpu', torch.bfloat16),
        ):
            yield
