"""The four stages of Hugging Face's image classifiers.

Paths and outputs are those of the models of ``transformers`` 4 and 5.
"""

from itertools import pairwise

from torch import nn

from .taps import (
    Blocks,
    Family,
    Tap,
    behind_norm,
    chain,
    check_blocks,
    enter,
    last_four,
    paths,
)


def _convs(net: nn.Module) -> list[Tap]:
    return chain(last_four(paths(net, 'encoder.stages')))


def _swin(net: nn.Module) -> list[Tap]:
    # Behind its blocks a stage merges patches, and what it returns beside
    # those is another thing in each release.
    stages = paths(net, 'encoder.layers')
    taps = []
    for stage in stages:
        end = paths(net, f'{stage}.blocks')[-1]
        taps.append(Tap(end, 'NLC', grid_source=stage))
    # The grid of what is merged is told to the stage behind.
    taps = enter(
        taps,
        [
            Tap(f'{stage}.downsample', 'NLC', grid_source=behind)
            for stage, behind in pairwise(stages)
        ],
    )
    taps[-1] = behind_norm(taps[-1], 'layernorm')
    return taps


def _find_layers(net: nn.Module) -> list[str]:
    """Paths of a ViT's layers: transformers 5 has them without `encoder`."""
    modules = dict(net.named_modules())
    for name in ('layers', 'encoder.layer'):
        if name in modules:
            return paths(net, name)
    import transformers

    raise ValueError(
        f'{type(net).__name__} of transformers {transformers.__version__} '
        'has neither `layers` nor `encoder.layer`, where transformers 5 and 4 '
        'have its blocks: install transformers>=4.28,<6, or name the taps of '
        'its stages with `taps`'
    )


def _vit(extra_tokens: int):
    def find(net: nn.Module, blocks: Blocks) -> list[Tap]:
        registers = getattr(net.config, 'num_register_tokens', 0)
        layers = _find_layers(net)
        taps = [
            Tap(
                layers[end],
                'NLC',
                extra_tokens + registers,
                'embeddings.patch_embeddings.projection',
            )
            for end in check_blocks(blocks, len(layers))
        ]
        # BEiT has its norm behind the pooling.
        if not isinstance(net.layernorm, nn.Identity):
            taps[-1] = behind_norm(taps[-1], 'layernorm')
        return taps

    return find


#: ``transformers.`` and class name -> its family.
HUGGING_FACE: dict[str, Family | str] = {
    'transformers.ResNetModel': Family(_convs, 'ResNet'),
    'transformers.RegNetModel': Family(_convs, 'RegNet'),
    'transformers.ConvNextModel': Family(_convs, 'ConvNeXt'),
    'transformers.ConvNextV2Model': Family(_convs, 'ConvNeXt V2'),
    'transformers.SwinModel': Family(_swin, 'Swin'),
    'transformers.Swinv2Model': Family(_swin, 'Swin V2'),
    'transformers.ViTModel': Family(_vit(1), 'ViT', isotropic=True),
    'transformers.DeiTModel': Family(_vit(2), 'DeiT', isotropic=True),
    'transformers.BeitModel': Family(_vit(1), 'BEiT', isotropic=True),
    'transformers.Dinov2Model': Family(_vit(1), 'DINOv2', isotropic=True),
    'transformers.Dinov2WithRegistersModel': Family(
        _vit(1), 'DINOv2 with registers', isotropic=True
    ),
}
