"""Parts of a student that nothing reads, and so nothing trains."""

from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from torch import nn


def freeze_unread(student: nn.Module, read: Sequence[torch.Tensor]) -> None:
    """Freeze what no gradient can reach, and name it in the log.

    Such weights become buffers: they stay in checkpoints and are exported,
    but are no parameters. As such, frozen or not, MMEngine would give them to
    the optimizer; and DDP would wait for their gradients.

    Args:
        student (nn.Module): Changed in place.
        read (Sequence[Tensor]): All that trains it, with its graph; nothing
            is frozen if this is not known.
    """
    trained = [p for p in student.parameters() if p.requires_grad]
    roots = [tensor.sum() for tensor in read if tensor.requires_grad]
    if not roots:
        return
    grads = torch.autograd.grad(sum(roots), trained, allow_unused=True)
    unread = {
        p for p, grad in zip(trained, grads, strict=True) if grad is None
    }
    if not unread:
        return
    names: dict[str, int] = {}
    for path, module in student.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in unread:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
                names[path or name] = names.get(path or name, 0) + 1
    shown = ', '.join(f'{path} ({count})' for path, count in names.items())
    print_log(
        'Nothing that is trained reads these parts of the student, which are '
        f'frozen (and how many weights): {shown}',
        'current',
    )
