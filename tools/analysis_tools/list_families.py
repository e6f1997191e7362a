"""List the model families whose stages are known, as Markdown.

`docs/families.md` is what this prints; `--write` renews it.
"""

import argparse
import contextlib
import io
import warnings
from pathlib import Path

from torch import device, nn

import mmcakd  # noqa: F401
from mmcakd.models.stages import FAMILIES, Tap, build_tail, find_family
from mmcakd.utils import Command, write_text

DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'families.md'

INTRO = """\
# Families of models

A **stage** is what a network knows at one resolution. Most models, student or teacher, have four, a convolutional network with strides 4, 8, 16
and 32 as much as a ViT that keeps one grid from its first block to its last; a LeViT has three. `data_idx` of a reference is 0 for the first and -1
for the last, and only a stage that is read has to exist. A stage ends behind a module of the model; this is its **tap**: the module's path, the layout of what it returns, and where the grid of its tokens can be read. The recorder
`mmcakd.StageOutputs` finds the taps of the families below by itself, for their subclasses too.

- **Layout.** `NCHW` are feature maps; `NHWC` and `NLC` are tokens, on their grid or in a row; `NLHWC` are tokens in windows. Whatever it is, a stage is recorded as a map
  `(N, C, H, W)`. Rectangular images keep their rectangular grid.
- **Extra tokens** (class, distillation, register tokens) stand in front of the patch tokens and are left out. `extra_tokens=True` keeps them:
  a stage of tokens is then a `StageTokens(map, extra)`.
- **Final norm.** The last stage is read behind the network's final norm where that works on the map; `final_norm=False` reads it before. Norms behind
  the pooling are never in a stage.
- **Blocks.** A family marked with * has no stages of its own. Of 12 blocks, stages end with the 2nd, 4th, 10th and 12th, of 24 with the 2nd, 4th,
  22nd and 24th, as in OFA-KD. `blocks=(2, 5, 8, 11)` names others, counted from 0; give `TeacherReplay` the same, and an
  `AssistantConnector` that ends in it.
- **Tail.** Whether `mmcakd.TeacherReplay` can run what lies behind a stage of such a teacher on features of a student, or why not. What patch tokens
  or maps lack is the teacher's own, from its forward on the same images: class tokens, and in an HRNet, a Conformer, a TNT or a PiT the features of
  the other branches. Other classifiers with a tail can be the last part of a `mmcakd.AssistantConnector`, be it student or teacher, if their head
  is a known one.
- **OFA-KD head.** The kind of exit head that `mmcakd.OFAHeadConnector` gives each stage of such a student.

Paths are those of the smallest model of a family, inside the backbone; deeper ones have higher block numbers.

## Naming taps by hand

A model that is not listed needs taps in the config, one a stage. The error that says so lists the parts of the model.

```python
stages = dict(
    type='mmcakd.StageOutputs',
    taps=[
        # a module that returns a map (N, C, H, W)
        dict(source='backbone.stages.0'),
        # channels last
        dict(source='backbone.stages.1', layout='NHWC'),
        # tokens behind one class token; a module that tells their grid: by the map it returns, by (H, W) as the second of its outputs or
        # inputs, or by the map it takes
        dict(
            source='backbone.blocks.5',
            layout='NLC',
            extra_tokens=1,
            grid_source='backbone.patch_embed.proj',
        ),
        # the second output of a module, on a grid that never changes; `final_norm=False` reads `raw` instead
        dict(
            source='backbone.norm',
            layout='NLC',
            grid=(7, 7),
            raw=dict(
                source='backbone.blocks.11',
                layout='NLC',
                grid=(7, 7),
                output=1,
            ),
        ),
    ],
)
```

`copy=True` keeps a copy of an output into which the network writes afterwards.
"""  # noqa: E501

TITLES = dict(
    mmpretrain=('MMPretrain', 'Every backbone of its registry.'),
    timm=(
        'timm',
        'Inside `mmpretrain.TIMMBackbone` and `mmpretrain.TimmClassifier`.',
    ),
    torchvision=('torchvision', 'Inside `mmcakd.TorchvisionClassifier`.'),
    transformers=(
        'Hugging Face',
        'Inside `mmpretrain.HuggingFaceClassifier`. Paths are those of '
        'transformers 5; in transformers 4 the layers of ViT, DeiT and BEiT '
        'are in `encoder.layer`, and are found there.',
    ),
)

SWIN = dict(embed_dims=8, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8])
VIT = dict(embed_dims=16, num_layers=12, num_heads=2, feedforward_channels=32)
#: Arguments of the smallest model of each family of MMPretrain, or of a
#: narrower one of the same depth.
MMPRETRAIN = dict(
    AlexNet={},
    LeNet5={},
    VGG=dict(depth=11),
    InceptionV3={},
    ResNet=dict(depth=18),
    DenseNet=dict(arch='121'),
    CSPDarkNet=dict(depth=53),
    HRNet=dict(arch='w18'),
    ShuffleNetV1={},
    ShuffleNetV2={},
    MobileNetV2={},
    MobileNetV3=dict(arch='small'),
    EfficientNet=dict(arch='b0'),
    EfficientNetV2=dict(arch='s'),
    RepVGG=dict(arch='A0'),
    MobileOne=dict(arch='s0'),
    RepLKNet=dict(
        arch=dict(
            large_kernel_sizes=[7] * 4,
            layers=[2, 2, 18, 2],
            channels=[8, 16, 32, 64],
            small_kernel=5,
            dw_ratio=1,
        )
    ),
    ConvNeXt=dict(arch='atto'),
    HorNet=dict(arch='tiny'),
    EdgeNeXt=dict(arch='xxsmall'),
    VAN=dict(arch='tiny'),
    ConvMixer=dict(
        arch=dict(embed_dims=8, depth=20, patch_size=14, kernel_size=9)
    ),
    Vig=dict(arch='tiny'),
    PyramidVig=dict(arch='tiny'),
    PoolFormer=dict(arch='s12'),
    RIFormer=dict(arch='s12'),
    EfficientFormer=dict(arch='l1'),
    MobileViT=dict(arch='xx_small'),
    Conformer=dict(arch='tiny'),
    TinyViT=dict(arch='5m'),
    SwinTransformer=dict(arch=SWIN),
    SwinTransformerV2=dict(arch=SWIN | dict(extra_norm_every_n_blocks=0)),
    DaViT=dict(
        arch=dict(embed_dims=8, depths=[1, 1, 3, 1], num_heads=[1, 2, 4, 8])
    ),
    PCPVT=dict(arch='small', norm_after_stage=[False, False, False, True]),
    MixMIMTransformer=dict(
        arch=SWIN | dict(depths=[2, 2, 18, 2]), img_size=224
    ),
    LeViT=dict(arch='128s'),
    HiViT=dict(
        arch=dict(embed_dims=16, depths=[2, 2, 20], num_heads=2), ape=False
    ),
    MViT=dict(arch='tiny'),
    VisionTransformer=dict(arch=VIT),
    RevVisionTransformer=dict(arch=VIT),
    BEiTViT=dict(arch=VIT),
    ViTEVA02=dict(arch=VIT),
    ViTSAM=dict(arch=VIT | dict(global_attn_indexes=[11])),
    T2T_ViT=dict(embed_dims=16, layer_cfgs=dict(num_heads=2)),
    TNT=dict(
        arch=dict(
            embed_dims_outer=16,
            embed_dims_inner=8,
            num_layers=12,
            num_heads_outer=2,
            num_heads_inner=2,
        )
    ),
    XCiT=dict(embed_dims=16, num_heads=2),
    MlpMixer=dict(
        arch=dict(
            embed_dims=16, num_layers=8, tokens_mlp_dims=8, channels_mlp_dims=8
        )
    ),
    RepMLPNet=dict(
        arch=dict(
            channels=[8, 16, 32, 64],
            depths=[2, 2, 12, 2],
            sharesets_nums=[1, 1, 2, 2],
        )
    ),
)
#: Names of small models of timm, for the classes that need one.
TIMM = dict(
    ByobNet='test_byobnet',
    CPUBone='cpubone_nano',
    CSATv2='csatv2',
    ConvNeXt='convnext_atto',
    CspNet='cs3darknet_focus_s',
    CspNext='cspnext_tiny',
    DLA='dla46x_c',
    DPN='dpn48b',
    DaVit='davit_tiny',
    DenseNet='densenet121',
    EdgeNeXt='edgenext_xx_small',
    EfficientFormerV2='efficientformerv2_s0',
    EfficientNet='efficientnet_b0',
    EfficientVit='efficientvit_b0',
    EfficientVitMsra='efficientvit_m0',
    FastVit='fastvit_t8',
    FasterNet='fasternet_t0',
    FocalNet='focalnet_tiny_srf',
    GhostNet='ghostnet_050',
    GlobalContextVit='gcvit_xxtiny',
    HighPerfGpuNet='hgnetv2_b0',
    IFormer='iformer_t',
    InceptionResnetV2='inception_resnet_v2',
    InceptionV3='inception_v3',
    InceptionV4='inception_v4',
    LCNetV2='lcnetv2_small',
    LowFormer='lowformer_b0',
    MaxxVit='maxvit_pico_rw_256',
    MetaFormer='poolformerv2_s12',
    MetaNeXt='inception_next_atto',
    MobileNetV3='mobilenetv3_small_050',
    NextViT='nextvit_small',
    NormFreeNet='nfnet_f0',
    PyramidVisionTransformerV2='pvt_v2_b0',
    RDNet='rdnet_tiny',
    RegNet='regnetx_002',
    RepGhostNet='repghostnet_050',
    RepVit='repvit_m1',
    ResNet='resnet18',
    ResNetV2='resnetv2_18',
    RexNet='rexnet_100',
    SENet='legacy_seresnet18',
    SHViT='shvit_s1',
    StarNet='starnet_s050',
    SwiftFormer='swiftformer_xs',
    SwinTransformerV2Cr='swinv2_cr_tiny_224',
    TResNet='tresnet_m',
    TinyVit='tiny_vit_5m_224',
    VovNet='ese_vovnet19b_slim',
    Xception='legacy_xception',
    XceptionAligned='xception41p',
    FeatureListNet='resnet18',
    ConvMixer='convmixer_1024_20_ks9_p14',
    HighResolutionNet='hrnet_w18_small',
    HieraDet='sam2_hiera_tiny',
    MambaOut='mambaout_femto',
    Sequencer2d='sequencer2d_s',
    SwinTransformer='swin_tiny_patch4_window7_224',
    SwinTransformerV2='swinv2_tiny_window8_256',
    EfficientViM='efficientvim_m1',
    PoolingVisionTransformer='pit_ti_224',
    Visformer='visformer_tiny',
    Nest='nest_tiny',
    Levit='levit_128s',
    MultiScaleVit='mvitv2_tiny',
    Twins='twins_svt_small',
    VisionTransformer='vit_tiny_patch16_224',
    VisionTransformerRelPos='vit_relpos_small_patch16_224',
    VisionTransformerSAM='samvit_base_patch16_224',
    Beit='beit_base_patch16_224',
    Eva='eva02_tiny_patch14_224',
    Cait='cait_xxs24_224',
    ConVit='convit_tiny',
    Xcit='xcit_nano_12_p16_224',
    MlpMixer='mixer_s32_224',
)
TORCHVISION = dict(
    ResNet='resnet18',
    RegNet='regnet_y_400mf',
    MobileNetV2='mobilenet_v2',
    MobileNetV3='mobilenet_v3_small',
    EfficientNet='efficientnet_b0',
    ConvNeXt='convnext_tiny',
    SwinTransformer='swin_t',
    VisionTransformer='vit_b_16',
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        '--write', action='store_true', help=f'renew {DOCS.name}'
    )
    return parser.parse_args()


def build(key: str) -> nn.Module:
    """Build a small network of a family."""
    package, _, name = key.rpartition('.')
    if package == 'timm':
        from timm import create_model

        features = dict(features_only=True) if name == 'FeatureListNet' else {}
        with device('meta'):
            return create_model(TIMM[name], **features)
    if package == 'torchvision':
        from torchvision.models import get_model

        # A RegNet computes its widths with tensors.
        with device('cpu' if name == 'RegNet' else 'meta'):
            return get_model(TORCHVISION[name])
    if package == 'transformers':
        import transformers

        config = getattr(transformers, name.replace('Model', 'Config'))
        with device('meta'):
            return getattr(transformers, name)(config())
    from mmpretrain.registry import MODELS

    # An abstract class is shown by its first subclass.
    name = 'CSPDarkNet' if name == 'CSPNet' else name
    return MODELS.build(
        dict(type=name, _scope_='mmpretrain', **MMPRETRAIN[name])
    )


def has_tail(net: nn.Module) -> str:
    """Tell whether the stages of a teacher can be replayed, or why not."""
    _, family = find_family(net)
    count = len(family.taps(net))
    if family.no_tail or count == 1:
        return f'no: {family.no_tail or "there is no other stage"}'
    for start in range(1, count):
        build_tail(net, start, count)
    return 'yes'


def code(words) -> str:
    """Format paths as code."""
    return ', '.join(f'`{word}`' for word in words)


def merge(values) -> str:
    """Name values once if they are all the same."""
    values = list(map(str, values))
    if len(set(values)) == 1:
        return values[0]
    return ', '.join(value or 'none' for value in values)


def row(key: str, classes: list[str]) -> str:
    """Make the row of a family with stages."""
    family, net = FAMILIES[key], build(key)
    taps = family.taps(net)
    raw: list[Tap] = [tap.raw or tap for tap in taps]
    star = '*' if family.isotropic else ''
    heads = ['map' if tap.layout == 'NCHW' else 'tokens' for tap in raw]
    cells = (
        code(classes) + star,
        family.examples,
        code(tap.source for tap in taps),
        f'`{raw[-1].source}`' if taps[-1].raw else '',
        merge(tap.layout for tap in raw),
        merge('' if tap.layout == 'NCHW' else tap.extra_tokens for tap in raw),
        merge(heads),
        has_tail(net),
    )
    return f'| {" | ".join(cells)} |'


def find_classes() -> dict[str, list[str]]:
    """Find the class names of every family, with registered subclasses."""
    import mmpretrain.models  # noqa: F401
    from mmpretrain.registry import MODELS

    classes = {key: [key.rpartition('.')[2]] for key in FAMILIES}
    for cls in MODELS.module_dict.values():
        if not cls.__module__.startswith('mmpretrain.models.backbones.'):
            continue
        # TIMMBackbone holds another network, whose family counts.
        found = find_family(cls.__new__(cls))
        if found and cls.__name__ not in classes[found[0]]:
            classes[found[0]].append(cls.__name__)
    return {
        key: [names[0], *sorted(names[1:])] for key, names in classes.items()
    }


def render() -> str:
    """Render the page."""
    classes = find_classes()
    lines = [INTRO]
    for package, (title, where) in TITLES.items():
        keys = [
            key
            for key in FAMILIES
            if (key.rpartition('.')[0] or 'mmpretrain') == package
        ]
        lines += [
            f'## {title}\n',
            f'{where}\n',
            '| class | models | taps of the stages | before the final '
            'norm | layout | extra tokens | OFA-KD head | tail |',
            '|' + ' --- |' * 8,
        ]
        without = []
        for key in keys:
            if isinstance(FAMILIES[key], str):
                without.append(f'| {code(classes[key])} | {FAMILIES[key]} |')
            else:
                lines.append(row(key, classes[key]))
        if without:
            lines += ['\n| class | why it has no stages |']
            lines += ['| --- | --- |', *without]
        lines.append('')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    warnings.filterwarnings('ignore')
    # MMPretrain prints while it builds.
    with contextlib.redirect_stdout(io.StringIO()):
        page = render()
    if args.write:
        write_text(DOCS, page)
    else:
        print(page, end='')


if __name__ == '__main__':
    with Command():
        main()
