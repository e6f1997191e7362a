"""Find the kind of tail that a model has."""

from torch import nn

from .chain_tail import ChainTail
from .families import find_backbone, find_family, find_taps
from .forward_tail import ForwardTail
from .tail import Tail


def build_tail(
    model: nn.Module, from_stage: int, to_stage: int = 4, blocks=None, **kwargs
) -> Tail:
    """Build the tail of a model.

    Args:
        model (nn.Module): A network of a known family, or a classifier or
            detector with one inside.
        from_stage (int): See :class:`Tail`.
        to_stage (int): See :class:`Tail`. Defaults to 4.
        blocks (Sequence[int], optional): See :class:`Tail`.
        **kwargs: Other arguments of :class:`Tail`.

    Raises:
        ValueError: The family has no tail that can be replayed, or the stages
            are out of order.
    """
    if not 1 <= from_stage < to_stage:
        raise ValueError(
            'a tail runs from a stage of 1 or more to a later one, got '
            f'from_stage={from_stage}, to_stage={to_stage}'
        )
    _, backbone = find_backbone(model)
    taps = find_taps(backbone, blocks)
    _, family = find_family(backbone)
    if to_stage > len(taps):
        raise ValueError(
            f'a {type(backbone).__name__} has {len(taps)} stages, but its '
            f'tail should run over from_stage={from_stage}, '
            f'to_stage={to_stage}'
        )
    if family.no_tail:
        raise ValueError(
            f'the stages of {type(backbone).__name__} cannot be replayed: '
            f'{family.no_tail}. docs/families.md lists the networks whose '
            'tail can be, such as SwinTransformer, VisionTransformer and '
            'ResNet'
        )
    is_chain = all(tap.steps for tap in taps[from_stage:to_stage])
    tail = ChainTail if is_chain else ForwardTail
    return tail(backbone, from_stage, to_stage, blocks, **kwargs)
