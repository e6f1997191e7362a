"""Every config for MMDetection: its recipe, its weights, and two steps."""

import math

import pytest
import torch
from torch.nn import BatchNorm2d

BACKBONES = ('resnet50', 'swin-t', 'convnext-t', 'mobilenetv2')
NECK = {'model.neck.in_channels', 'model.neck.start_level'}
CONVNEXT_OPTIMIZER = {
    'optim_wrapper.constructor',
    'optim_wrapper.optimizer.betas',
    'optim_wrapper.optimizer.lr',
    'optim_wrapper.optimizer.momentum',
    'optim_wrapper.optimizer.type',
    'optim_wrapper.optimizer.weight_decay',
    'optim_wrapper.paramwise_cfg',
}
FOUR_STAGES = {'model.neck.in_channels', 'find_unused_parameters'}

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco'
RETINANET_3X = 'mmdet::retinanet/retinanet_r50_fpn_ms-640-800-3x_coco'
MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco'
MASK_RCNN_3X = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_ms-poly-3x_coco'

#: The recipe each config comes from, and what else than the backbone differs.
RECIPES = {
    'retinanet_resnet50_fpn_1x_coco': (RETINANET, set()),
    'retinanet_resnet50_fpn_3x_coco': (RETINANET_3X, set()),
    'retinanet_swin-t_fpn_1x_coco': (
        'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco',
        set(),
    ),
    'retinanet_swin-t_fpn_3x_coco': (RETINANET_3X, NECK),
    'retinanet_convnext-t_fpn_1x_coco': (
        RETINANET,
        NECK | CONVNEXT_OPTIMIZER,
    ),
    'retinanet_convnext-t_fpn_3x_coco': (
        RETINANET_3X,
        NECK | CONVNEXT_OPTIMIZER,
    ),
    'retinanet_mobilenetv2_fpn_1x_coco': (RETINANET, FOUR_STAGES),
    'retinanet_mobilenetv2_fpn_3x_coco': (RETINANET_3X, FOUR_STAGES),
    'mask-rcnn_resnet50_fpn_1x_coco': (MASK_RCNN, set()),
    'mask-rcnn_resnet50_fpn_3x_coco': (MASK_RCNN_3X, set()),
    'mask-rcnn_swin-t_fpn_1x_coco': (
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco',
        set(),
    ),
    'mask-rcnn_swin-t_fpn_3x_coco': (
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco',
        set(),
    ),
    'mask-rcnn_convnext-t_fpn_1x_coco': (
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco',
        {
            'optim_wrapper.constructor',
            'optim_wrapper.paramwise_cfg.custom_keys',
            'optim_wrapper.paramwise_cfg.decay_rate',
            'optim_wrapper.paramwise_cfg.decay_type',
            'optim_wrapper.paramwise_cfg.num_layers',
        },
    ),
    'mask-rcnn_convnext-t_fpn_3x_coco': (
        'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco',
        set(),
    ),
    'mask-rcnn_mobilenetv2_fpn_1x_coco': (MASK_RCNN, FOUR_STAGES),
    'mask-rcnn_mobilenetv2_fpn_3x_coco': (MASK_RCNN_3X, FOUR_STAGES),
}
#: The recipes of MMDetection that have a backbone of the same kind.
SAME_BACKBONE = [
    'retinanet_resnet50_fpn_1x_coco',
    'retinanet_swin-t_fpn_1x_coco',
    'mask-rcnn_resnet50_fpn_3x_coco',
    'mask-rcnn_swin-t_fpn_3x_coco',
    'mask-rcnn_convnext-t_fpn_3x_coco',
]
LAST_STAGE = {
    'resnet50': 'layer4',
    'swin-t': 'stages.3.blocks',
    'convnext-t': 'stages.3',
    'mobilenetv2': 'layer7',
}

every_config = pytest.mark.parametrize('name', RECIPES)


@pytest.fixture
def read(read_config):
    return lambda name: read_config('mmdet', name)


def backbone_of(name):
    return name.split('_')[1]


def test_every_detector_has_every_backbone_and_schedule(request):
    folder = request.config.rootpath / 'configs' / 'downstream' / 'mmdet'
    expected = {
        f'{detector}_{backbone}_fpn_{schedule}_coco'
        for detector in ('retinanet', 'mask-rcnn')
        for backbone in BACKBONES
        for schedule in ('1x', '3x')
    }
    assert {path.stem for path in folder.glob('*.py')} == expected
    assert set(RECIPES) == expected


@every_config
def test_all_but_the_backbone_is_the_recipes(
    name, read, read_recipe, differences
):
    cfg, recipe = read(name), read_recipe(RECIPES[name][0])
    assert differences(cfg, recipe) == RECIPES[name][1]


@every_config
def test_trains_for_as_long_as_its_name_says(name, read):
    cfg = read(name)
    epochs = cfg.train_cfg.max_epochs
    epochs *= cfg.train_dataloader.dataset.get('times', 1)
    assert epochs == (36 if '_3x_' in name else 12)


@every_config
def test_images_are_normalised_as_for_the_student(
    name, read, check_normalisation
):
    check_normalisation(read(name))


@pytest.mark.parametrize('name', SAME_BACKBONE)
def test_backbone_is_the_recipes(name, read, read_recipe, build_backbone):
    cfg, recipe = read(name), read_recipe(RECIPES[name][0])
    rate = recipe.model.backbone.get('drop_path_rate')
    assert cfg.model.backbone.get('drop_path_rate') == rate
    ours, theirs = build_backbone(cfg), build_backbone(recipe)
    for trained in ({True}, {True, False}):
        shapes, expected = (
            sorted(
                tuple(parameter.shape)
                for parameter in backbone.parameters()
                if parameter.requires_grad in trained
            )
            for backbone in (ours, theirs)
        )
        assert shapes == expected
    for backbone in (ours, theirs):
        backbone.train()
    norms, expected = (
        [m.training for m in backbone.modules() if isinstance(m, BatchNorm2d)]
        for backbone in (ours, theirs)
    )
    assert norms == expected


@pytest.mark.parametrize('backbone', BACKBONES)
def test_backbone_computes_what_the_student_does(
    backbone, read, exported, build_backbone, build_student
):
    # At 224 px the last map is one window, which a classifier does not shift.
    image = torch.randn(1, 3, 256, 256)
    cfg = read(f'mask-rcnn_{backbone}_fpn_1x_coco')
    cfg.model.backbone.init_cfg.checkpoint = str(exported(backbone))
    ours = build_backbone(cfg)
    ours.init_weights()
    # The last blocks: the norms behind them are the detector's own matter.
    outputs = []
    for model in (ours, build_student(backbone).backbone):
        model.eval()
        last_block = model.get_submodule(LAST_STAGE[backbone])[-1]
        last_block.register_forward_hook(
            lambda module, inputs, output: outputs.append(output)
        )
        with torch.no_grad():
            model(image)
    torch.testing.assert_close(*outputs)


def test_a_student_with_another_stem_needs_its_type_alone(
    read, exported, build_backbone, check_weights
):
    cfg = read('mask-rcnn_resnet50_fpn_1x_coco')
    cfg.model.backbone.init_cfg.checkpoint = str(exported('resnetv1d50'))
    cfg.model.backbone.type = 'mmpretrain.ResNetV1d'
    backbone = build_backbone(cfg)
    backbone.init_weights()
    check_weights(backbone.state_dict(), 'resnetv1d50', **cfg.backbone_weights)


@pytest.fixture
def small(read, coco_root, exported, shrink):
    """A config on a tenth of the size, for two steps on four images."""

    def make(name):
        cfg = read(name)
        checkpoint = exported(backbone_of(name))
        cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            dataset = loader.dataset
            if dataset.type == 'RepeatDataset':
                dataset.times = 1
                dataset = dataset.dataset
            dataset.data_root = f'{coco_root}/'
            dataset.pipeline = shrink(dataset.pipeline, 10)
        annotations = 'annotations/instances_val2017.json'
        cfg.val_evaluator.ann_file = str(coco_root / annotations)
        cfg.train_cfg.max_epochs = 1
        # Nothing is found with confidence after two steps.
        test_cfg = cfg.model.test_cfg
        test_cfg.get('rcnn', test_cfg).score_thr = 0.0
        if name.startswith('mask-rcnn'):
            # Regions are most of the work, and there are three objects.
            cfg.model.train_cfg.rcnn.sampler.num = 32
            test_cfg.rpn.max_per_img = 32
        return cfg

    return make


@every_config
def test_two_steps_and_an_evaluation(name, small, run, check_weights):
    cfg = small(name)
    watch = run(cfg)

    check_weights(watch.before, backbone_of(name), **cfg.backbone_weights)

    losses = {'loss', 'loss_cls', 'loss_bbox'}
    if name.startswith('mask-rcnn'):
        losses |= {'acc', 'loss_mask', 'loss_rpn_cls', 'loss_rpn_bbox'}
    assert len(watch.losses) == 2
    for step in watch.losses:
        assert losses <= step.keys()
        assert all(math.isfinite(value) for value in step.values())

    ignored = {n.split('.')[1] for n in watch.without_gradient}
    assert ignored == ({'conv2'} if 'mobilenetv2' in name else set())
    assert bool(ignored) == cfg.get('find_unused_parameters', False)
    assert watch.changed
    assert not watch.changed & watch.frozen
    if 'paramwise_cfg' in cfg.optim_wrapper:
        assert watch.decays_of_norms == {0.0}

    metrics = ['bbox', 'segm'] if name.startswith('mask-rcnn') else ['bbox']
    found = [k for k in watch.metrics if k.endswith('_mAP')]
    assert found == [f'coco/{metric}_mAP' for metric in metrics]
    assert all(0 <= watch.metrics[key] <= 1 for key in found)
