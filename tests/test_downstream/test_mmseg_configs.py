"""Every config for MMSegmentation: its recipe, its weights, and two steps."""

import math
from collections import Counter

import pytest
import torch

BACKBONES = {'resnet50': '4xb4', 'swin-t': '8xb2', 'vit-b': '8xb2'}
SCHEDULES = {'80k': 80_000, '160k': 160_000}

SWIN_T = 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k'
VIT_B = 'vit/vit_vit-b16_mln_upernet_8xb2'
LN_DECAY = {'optim_wrapper.paramwise_cfg.custom_keys..ln'}
PRETRAINED = {'model.pretrained'}
HALF = {
    'default_hooks.checkpoint.interval',
    'param_scheduler',
    'train_cfg.max_iters',
    'train_cfg.val_interval',
}
HEAD = {
    'model.auxiliary_head.in_index',
    'model.decode_head.concat_input',
    'model.decode_head.in_channels',
    'model.decode_head.in_index',
    'model.decode_head.num_convs',
    'model.decode_head.pool_scales',
    'model.decode_head.type',
}

#: The recipe each config comes from, and what else than the backbone differs.
RECIPES = {
    'upernet_resnet50_4xb4-80k': ('upernet/upernet_r50_4xb4-80k', PRETRAINED),
    'upernet_resnet50_4xb4-160k': (
        'upernet/upernet_r50_4xb4-160k',
        PRETRAINED,
    ),
    'upernet_swin-t_8xb2-80k': (SWIN_T, HALF),
    'upernet_swin-t_8xb2-160k': (SWIN_T, set()),
    'upernet_vit-b_8xb2-80k': (f'{VIT_B}-80k', PRETRAINED | LN_DECAY),
    'upernet_vit-b_8xb2-160k': (f'{VIT_B}-160k', PRETRAINED | LN_DECAY),
    'fcn_resnet50_4xb4-80k': ('fcn/fcn_r50-d8_4xb4-80k', PRETRAINED),
    'fcn_resnet50_4xb4-160k': ('fcn/fcn_r50-d8_4xb4-160k', PRETRAINED),
    'fcn_swin-t_8xb2-80k': (SWIN_T, HEAD | HALF),
    'fcn_swin-t_8xb2-160k': (SWIN_T, HEAD),
    'fcn_vit-b_8xb2-80k': (
        f'{VIT_B}-80k',
        PRETRAINED | LN_DECAY | HEAD | {'model.neck'},
    ),
    'fcn_vit-b_8xb2-160k': (
        f'{VIT_B}-160k',
        PRETRAINED | LN_DECAY | HEAD | {'model.neck'},
    ),
}
DATA = 'ade20k-512x512'

every_config = pytest.mark.parametrize('name', RECIPES)


@pytest.fixture
def read(read_config):
    return lambda name: read_config('mmseg', f'{name}_{DATA}')


@pytest.fixture
def read_base(read_recipe):
    return lambda name: read_recipe(f'mmseg::{name}_{DATA}')


def backbone_of(name):
    return name.split('_')[1]


def test_every_segmentor_has_every_backbone_and_schedule(request):
    folder = request.config.rootpath / 'configs' / 'downstream' / 'mmseg'
    expected = {
        f'{segmentor}_{backbone}_{batch}-{schedule}'
        for segmentor in ('upernet', 'fcn')
        for backbone, batch in BACKBONES.items()
        for schedule in SCHEDULES
    }
    found = {
        path.stem.removesuffix(f'_{DATA}') for path in folder.glob('*.py')
    }
    assert found == expected
    assert set(RECIPES) == expected


@every_config
def test_all_but_the_backbone_is_the_recipes(
    name, read, read_base, differences
):
    recipe, changed = RECIPES[name]
    assert differences(read(name), read_base(recipe)) == changed


@every_config
def test_trains_for_as_long_and_on_as_much_as_its_name_says(name, read):
    cfg = read(name)
    iterations = SCHEDULES[name.rsplit('-', 1)[-1]]
    assert cfg.train_cfg.max_iters == iterations
    assert cfg.param_scheduler[-1].end == iterations
    assert cfg.default_hooks.checkpoint.interval == iterations // 10
    assert cfg.train_cfg.val_interval == iterations // 10
    gpus, images = BACKBONES[backbone_of(name)].split('xb')
    assert cfg.train_dataloader.batch_size == int(images)
    assert int(gpus) * int(images) == 16


@every_config
def test_images_are_normalised_as_for_the_student(
    name, read, check_normalisation
):
    check_normalisation(read(name))


@pytest.mark.parametrize(
    'backbone, unchanged',
    [
        ('swin-t', set()),
        (
            'vit-b',
            {'model.decode_head.in_index', 'model.auxiliary_head.in_index'},
        ),
    ],
)
def test_fcn_has_the_head_of_the_recipe_for_resnet50(
    backbone, unchanged, read, read_base, differences
):
    cfg = read(f'fcn_{backbone}_8xb2-160k')
    recipe = read_base('fcn/fcn_r50-d8_4xb4-160k')
    changed = {
        key
        for key in differences(cfg, recipe)
        if key.startswith(('model.decode_head', 'model.auxiliary_head'))
    }
    assert (
        changed
        == {
            'model.decode_head.in_channels',
            'model.decode_head.in_index',
            'model.auxiliary_head.in_channels',
            'model.auxiliary_head.in_index',
        }
        - unchanged
    )


def test_swin_is_the_recipes(read, read_base, build_backbone):
    cfg, recipe = read('upernet_swin-t_8xb2-160k'), read_base(SWIN_T)
    ours, theirs = cfg.model.backbone, recipe.model.backbone
    assert ours.drop_path_rate == theirs.drop_path_rate
    shapes, expected = (
        sorted(tuple(p.shape) for p in build_backbone(c).parameters())
        for c in (cfg, recipe)
    )
    assert shapes == expected


def test_vit_is_the_recipes_but_for_what_the_student_has(
    read, read_base, build_backbone
):
    cfg = read('upernet_vit-b_8xb2-160k')
    recipe = read_base(f'{VIT_B}-160k')
    ours, theirs = (
        Counter(tuple(p.shape) for p in build_backbone(c).parameters())
        for c in (cfg, recipe)
    )
    # The student has no class token, and a bias where it embeds patches.
    assert theirs - ours == Counter([(1, 1, 768), (1, 1 + 32 * 32, 768)])
    assert ours - theirs == Counter([(768,), (1, 32 * 32, 768)])


def test_dilated_resnet_computes_what_the_student_does_but_denser(
    read, exported, build_backbone, build_student
):
    cfg = read('fcn_resnet50_4xb4-80k')
    cfg.model.backbone.init_cfg.checkpoint = str(exported('resnet50'))
    ours = build_backbone(cfg)
    ours.init_weights()
    ours.eval()
    student = build_student('resnet50').backbone
    student.out_indices = (0, 1, 2, 3)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        dense, sparse = ours(image), student(image)
    assert [tuple(m.shape[2:]) for m in dense] == [(16, 16)] + 3 * [(8, 8)]
    for step, a, b in zip((1, 1, 2, 4), dense, sparse, strict=True):
        torch.testing.assert_close(a[..., ::step, ::step], b)


@pytest.fixture
def small(read, ade20k_root, exported, shrink):
    """A config on an eighth of the size, for two steps on four images."""

    def make(name):
        cfg = read(name)
        checkpoint = exported(backbone_of(name))
        cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
        preprocessor = shrink(cfg.model.data_preprocessor, 8)
        cfg.model.data_preprocessor = preprocessor
        cfg.train_dataloader.batch_size = 2
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.data_root = str(ade20k_root)
            loader.dataset.pipeline = shrink(loader.dataset.pipeline, 8)
        cfg.train_cfg.update(max_iters=2, val_interval=2)
        # The width of a head is a matter of its own, and of time.
        for head in ('decode_head', 'auxiliary_head'):
            cfg.model[head].channels = 16
        return cfg

    return make


@every_config
def test_two_steps_and_an_evaluation(name, small, run, check_weights):
    cfg = small(name)
    watch = run(cfg)

    check_weights(watch.before, backbone_of(name), **cfg.backbone_weights)

    assert len(watch.losses) == 2
    for step in watch.losses:
        assert {'loss', 'decode.loss_ce', 'aux.loss_ce'} <= step.keys()
        assert all(math.isfinite(value) for value in step.values())
    assert not watch.without_gradient
    assert watch.changed
    assert not watch.frozen
    if 'paramwise_cfg' in cfg.optim_wrapper:
        assert watch.decays_of_norms == {0.0}

    assert {'aAcc', 'mIoU', 'mAcc'} <= watch.metrics.keys()
    assert 0 <= watch.metrics['mIoU'] <= 100
