"""The table of model families, and finding a model in it."""

from collections.abc import Sequence

from torch import nn

from .huggingface_families import HUGGING_FACE
from .mmpretrain_families import MMPRETRAIN
from .taps import Family, Tap
from .timm_families import TIMM
from .torchvision_families import TORCHVISION

#: Class name -> its family, or why it has no stages. Names of MMPretrain
#: stand alone, others behind the name of their package. A subclass is found
#: by its parent's entry.
FAMILIES: dict[str, Family | str] = {
    **MMPRETRAIN,
    **TIMM,
    **TORCHVISION,
    **HUGGING_FACE,
}

#: Packages that reuse the names of MMPretrain's classes for other networks.
PACKAGES = ('timm', 'torchvision', 'transformers')

EXAMPLE = (
    "dict(type='mmcakd.StageOutputs', taps=[dict(source='...', "
    "layout='NCHW'), ...])"
)


def find_backbone(model: nn.Module) -> tuple[str, nn.Module]:
    """Find the network that has stages inside a classifier or detector.

    Returns:
        tuple[str, nn.Module]: Its path with a trailing dot, and itself.
    """
    prefix = ''
    names = ['backbone', 'timm_model', 'model']
    while names:
        name = names.pop(0)
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            prefix, model = f'{prefix}{name}.', inner
            # Transformers' classifiers name the attribute of their network.
            names += filter(None, [getattr(model, 'base_model_prefix', None)])
    return prefix, model


def find_family(net: nn.Module) -> tuple[str, Family | str] | None:
    """Find the entry of a network's class, or else of its nearest parent.

    Returns:
        tuple[str, Family | str] | None: The key and entry of
        :data:`FAMILIES`.
    """
    for cls in type(net).__mro__:
        package = cls.__module__.partition('.')[0]
        prefix = f'{package}.' if package in PACKAGES else ''
        key = prefix + cls.__name__
        if key in FAMILIES:
            return key, FAMILIES[key]
    return None


def find_taps(
    model: nn.Module, blocks: Sequence[int] | None = None
) -> list[Tap]:
    """List the taps of a model's stages.

    Args:
        model (nn.Module): A classifier, detector or bare backbone.
        blocks (Sequence[int], optional): For isotropic networks, the last
            block of each stage. Defaults to
            :func:`mmcakd.models.stages.split_blocks`.

    Returns:
        list[Tap]: Taps with paths relative to ``model``, in most families
        four.

    Raises:
        ValueError: The family is unknown, or has no stages.

    Examples:
        >>> from mmpretrain.models import ResNet
        >>> [tap.source for tap in find_taps(ResNet(50))]
        ['layer1', 'layer2', 'layer3', 'layer4']
    """
    prefix, net = find_backbone(model)
    name = type(net).__name__
    found = find_family(net)
    if found is None:
        raise ValueError(
            f'no stages are known for {type(net).__module__}.{name}. Name '
            f'them in the recorder: {EXAMPLE}. {_candidates(prefix, net)}'
        )
    _, family = found
    if isinstance(family, str):
        raise ValueError(
            f'{name} has no stages: {family}. Other parts may be named '
            f'in the recorder: {EXAMPLE}. {_candidates(prefix, net)}'
        )
    return [tap.inside(prefix) for tap in family.taps(net, blocks)]


def _candidates(prefix: str, net: nn.Module) -> str:
    # A list of blocks is what stages are mostly cut from.
    names = []
    for name, child in net.named_children():
        names.append(prefix + name)
        if isinstance(child, nn.Sequential | nn.ModuleList) and len(child):
            names[-1] += f' ({prefix}{name}.0 to .{len(child) - 1})'
    return f'Its parts are: {", ".join(names)}'
