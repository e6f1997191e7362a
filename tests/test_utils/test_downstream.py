import json
import os
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmcakd.registry import MODELS
from mmcakd.utils import (
    downstream,
    export_student,
    find_student,
    load_backbone,
    read_downstream_config,
    sha256,
)
from mmcakd.utils.downstream import (
    DownstreamHook,
    DownstreamRun,
    mark_run,
    plan_run,
    read_metrics,
    revert_sync_bn,
    run_config,
    tabulate,
    write_report,
)

INIT = dict(type='Pretrained', checkpoint='student.pth', prefix='backbone.')


def save(model: dict, path, spoil=lambda weights: None):
    """Save a classifier as it is exported; return the file."""
    weights = MODELS.build(model).state_dict()
    spoil(weights)
    meta = dict(cfg=Config(dict(model=model)).pretty_text)
    torch.save(dict(meta=meta, state_dict=weights), path)
    return path


@pytest.fixture
def student(tiny, tmp_path):
    return save(tiny.classifier(tiny.resnet()), tmp_path / 'student.pth')


@pytest.fixture
def read(tmp_path):
    """Write a config with this backbone, and read it."""

    def make(backbone: dict, init_cfg=INIT, **kwargs) -> Config:
        backbone = dict(backbone, type=f'mmpretrain.{backbone["type"]}')
        cfg = dict(
            default_scope='mmpretrain',
            model=dict(type='Detector', backbone=backbone),
            val_evaluator=dict(type='Accuracy'),
        )
        if init_cfg is not None:
            backbone['init_cfg'] = init_cfg
        path = tmp_path / 'detector.py'
        Config(cfg | kwargs).dump(path)
        return read_downstream_config(path)

    return make


def refusal(cfg, checkpoint) -> str:
    with pytest.raises(ValueError) as caught:
        load_backbone(cfg, checkpoint)
    return str(caught.value)


def start(cfg, checkpoint):
    """The backbone as MMEngine builds and initialises it."""
    init_default_scope('mmpretrain')
    settings = deepcopy(cfg.model.backbone)
    settings.init_cfg.checkpoint = str(checkpoint)
    backbone = MODELS.build(settings)
    backbone.init_weights()
    return backbone


# --------------------------------------------------------- the right backbone


def test_the_student_s_weights_are_expected_to_the_bit(student, read, tiny):
    cfg = read(tiny.resnet(out_indices=(0, 1, 2, 3)))
    loaded = load_backbone(cfg, student)
    saved = torch.load(student)['state_dict']
    names = {key for key in saved if key.startswith('backbone.')}
    assert {f'backbone.{name}' for name in loaded.weights} == names
    for name, weight in loaded.weights.items():
        assert torch.equal(weight, saved[f'backbone.{name}'])
    assert not loaded.resized
    loaded.verify(start(cfg, student))


def test_what_the_config_declares_new_is_left_to_it(tiny, read, tmp_path):
    student = save(tiny.classifier(tiny.swin()), tmp_path / 'student.pth')
    backbone = tiny.swin(out_indices=(0, 1, 2, 3))
    new = ['norm0', 'norm1', 'norm2']
    cfg = read(backbone, backbone_weights=dict(new=new, unused=[]))
    loaded = load_backbone(cfg, student)
    assert {name.split('.')[0] for name in loaded.new} == set(new)
    assert not loaded.weights.keys() & set(loaded.new)
    loaded.verify(start(cfg, student))

    undeclared = refusal(read(backbone), student)
    assert 'missing: 6 (norm0.weight, norm0.bias, norm1.weight, ...)' in (
        undeclared
    )
    assert 'backbone_weights' in undeclared


def test_what_the_config_declares_unused_is_left_out(tiny, read, tmp_path):
    student = save(tiny.classifier(tiny.vit()), tmp_path / 'student.pth')
    backbone = tiny.vit(final_norm=False)
    cfg = read(backbone, backbone_weights=dict(unused=['ln1']))
    loaded = load_backbone(cfg, student)
    assert loaded.unused == ['ln1.weight', 'ln1.bias']
    loaded.verify(start(cfg, student))
    assert 'unexpected: 2 (ln1.weight, ln1.bias)' in (
        refusal(read(backbone), student)
    )


def test_position_embeddings_are_named_when_resized(tiny, read, tmp_path):
    student = save(tiny.classifier(tiny.vit()), tmp_path / 'student.pth')
    cfg = read(tiny.vit(img_size=(96, 128)))
    loaded = load_backbone(cfg, student)
    assert loaded.resized == {'pos_embed': ((1, 17, 16), (1, 49, 16))}
    assert loaded.weights['pos_embed'].isfinite().all()
    loaded.verify(start(cfg, student))


def test_counters_of_batch_norm_may_be_missing(tiny, read, tmp_path):
    def spoil(weights):
        for key in [key for key in weights if 'num_batches' in key]:
            del weights[key]

    model = tiny.classifier(tiny.resnet())
    student = save(model, tmp_path / 'student.pth', spoil)
    load_backbone(read(tiny.resnet()), student)


def test_half_precision_is_loaded_as_it_is(tiny, read, tmp_path):
    def spoil(weights):
        for key, value in weights.items():
            if value.is_floating_point():
                weights[key] = value.half()

    model = tiny.classifier(tiny.resnet())
    student = save(model, tmp_path / 'student.pth', spoil)
    cfg = read(tiny.resnet())
    load_backbone(cfg, student).verify(start(cfg, student))


def test_a_backbone_that_was_changed_is_named(student, read, tiny):
    cfg = read(tiny.resnet())
    loaded = load_backbone(cfg, student)
    backbone = start(cfg, student)
    backbone.conv1.weight.data[0, 0, 0, 0] += 1e-6
    with pytest.raises(RuntimeError, match=r'1 \(conv1.weight\)'):
        loaded.verify(backbone)


def test_the_hook_looks_inside_wrappers_and_not_at_resumed_runs(
    student, read, tiny
):
    cfg = read(tiny.resnet())
    hook = DownstreamHook(load_backbone(cfg, student))
    spoilt = start(cfg, student)
    spoilt.conv1.weight.data.zero_()
    model = torch.nn.Module()
    model.backbone = spoilt
    wrapped = torch.nn.DataParallel(model)
    logger = SimpleNamespace(info=print)
    with pytest.raises(RuntimeError, match='conv1.weight'):
        hook.before_train(SimpleNamespace(iter=0, model=wrapped))
    hook.before_train(SimpleNamespace(iter=5, model=wrapped, logger=logger))
    model.backbone = start(cfg, student)
    hook.before_train(SimpleNamespace(iter=0, model=wrapped, logger=logger))


# --------------------------------------------------------- the wrong backbone


def test_another_depth_is_refused(student, read, tiny):
    said = refusal(read(tiny.resnet(depth=34)), student)
    assert str(student) in said and 'detector.py' in said
    assert 'Weights missing: ' in said and 'layer1.2.conv1.weight' in said
    assert 'unexpected' not in said
    assert 'ResNet(base_channels=4, depth=18, stem_channels=4)' in said
    assert 'ResNet(base_channels=4, depth=34, stem_channels=4)' in said


def test_another_family_is_refused(student, read, tiny):
    said = refusal(read(tiny.convnext()), student)
    assert 'missing: ' in said and 'unexpected: ' in said
    assert "The student's backbone is ResNet(" in said
    assert "the config's is ConvNeXt(" in said


def test_other_widths_are_refused(student, read, tiny):
    said = refusal(read(tiny.resnet(stem_channels=8)), student)
    assert 'of another shape: 6 (' in said
    assert 'conv1.weight (4, 3, 7, 7) for (8, 3, 7, 7)' in said
    # Not hidden by the shapes: another width asks for a projection.
    assert 'missing: 5 (layer1.0.downsample.0.weight' in said


def test_other_heads_of_a_swin_are_refused(tiny, read, tmp_path):
    student = save(tiny.classifier(tiny.swin()), tmp_path / 'student.pth')
    arch = tiny.swin()['arch'] | dict(num_heads=[2, 2, 4, 4])
    said = refusal(read(tiny.swin(arch=arch)), student)
    assert 'relative_position_bias_table (9, 1) for (9, 2)' in said


def test_sizes_that_cannot_be_resized_are_refused(tiny, read, tmp_path):
    def spoil(weights):
        weights['backbone.pos_embed'] = torch.zeros(1, 15, 16)

    model = tiny.classifier(tiny.vit())
    student = save(model, tmp_path / 'student.pth', spoil)
    said = refusal(read(tiny.vit()), student)
    assert 'The length of `pos_embed` (15)' in said


@pytest.mark.parametrize(
    ('spoil', 'expected'),
    [
        (
            lambda weights: weights.pop('backbone.layer1.0.conv1.weight'),
            'Weights missing: 1 (layer1.0.conv1.weight).',
        ),
        (
            lambda weights: weights.update(
                {'backbone.layer9.weight': torch.zeros(1)}
            ),
            'Weights unexpected: 1 (layer9.weight).',
        ),
        (
            lambda weights: weights.update(
                {'backbone.bn1.bias': torch.zeros(7)}
            ),
            'Weights of another shape: 1 (bn1.bias (7,) for (4,)).',
        ),
        (
            lambda weights: weights['backbone.bn1.bias'].fill_(torch.nan),
            'Weights not finite: 1 (bn1.bias).',
        ),
    ],
)
def test_a_single_wrong_weight_is_refused(
    tiny, read, tmp_path, spoil, expected
):
    model = tiny.classifier(tiny.resnet())
    student = save(model, tmp_path / 'student.pth', spoil)
    assert expected in refusal(read(tiny.resnet()), student)


def test_a_config_without_prefix_is_refused(read, tiny):
    for init_cfg in (None, dict(type='Pretrained', checkpoint='x.pth')):
        with pytest.raises(ValueError, match=r"prefix='backbone\.'"):
            read(tiny.resnet(), init_cfg)


def test_a_wrong_prefix_is_refused(student, read, tiny):
    cfg = read(tiny.resnet(), INIT | dict(prefix='model.backbone.'))
    said = refusal(cfg, student)
    assert "needs model.backbone.init_cfg.prefix='backbone.'" in said


@pytest.mark.parametrize(
    ('kind', 'package'),
    [
        ('mmpretrain.TimmClassifier', 'timm'),
        ('mmcakd.TorchvisionClassifier', 'torchvision'),
        ('HuggingFaceClassifier', 'Hugging Face'),
    ],
)
def test_networks_of_other_packages_are_refused(
    kind, package, read, tiny, tmp_path
):
    meta = dict(cfg=Config(dict(model=dict(type=kind))).pretty_text)
    weights = {'conv1.weight': torch.zeros(4, 3, 7, 7)}
    path = tmp_path / 'student.pth'
    torch.save(dict(meta=meta, state_dict=weights), path)
    said = refusal(read(tiny.resnet()), path)
    assert f'a network of {package}' in said and str(path) in said


def test_bare_weights_of_other_packages_are_refused(read, tiny, tmp_path):
    path = tmp_path / 'resnet18.pth'
    torch.save({'conv1.weight': torch.zeros(4, 3, 7, 7)}, path)
    said = refusal(read(tiny.resnet()), path)
    assert '1 (conv1.weight)' in said and 'timm, torchvision' in said


@pytest.mark.parametrize(
    'text',
    ["open('{path}', 'w')", "model = open('{path}', 'w')", 'no (python'],
)
def test_the_config_in_a_checkpoint_is_not_run(text, read, tiny, tmp_path):
    path = tmp_path / 'student.pth'
    meta = dict(cfg=text.format(path=tmp_path / 'written'))
    weights = MODELS.build(tiny.classifier(tiny.resnet())).state_dict()
    torch.save(dict(meta=meta, state_dict=weights), path)
    said = refusal(read(tiny.resnet(depth=34)), path)
    assert "The student's backbone is of an unknown kind" in said
    assert not (tmp_path / 'written').exists()


# ---------------------------------------------------------------- the config


def test_missing_packages_name_the_cure(read, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(downstream, 'find_spec', lambda name: None)
    cure = 'bash tools/setup_downstream.sh'
    for scope in ('mmdet', 'mmseg'):
        with pytest.raises(ImportError, match=f'{scope} is not.*{cure}'):
            read(tiny.resnet(), default_scope=scope)
    path = tmp_path / 'inherits.py'
    path.write_text("_base_ = 'mmyolo::_base_/x.py'")
    with pytest.raises(ImportError, match=f'mmyolo.*{cure}'):
        read_downstream_config(path)
    # mmcv-lite
    monkeypatch.setattr(
        downstream, 'find_spec', lambda name: name != 'mmcv._ext' or None
    )
    with pytest.raises(ImportError, match=f'without its operators.*{cure}'):
        read(tiny.resnet(), default_scope='mmdet')


def test_weights_that_would_replace_the_student_s_are_refused(read, tiny):
    with pytest.raises(ValueError, match='load_from'):
        read(tiny.resnet(), load_from='detector.pth')


def test_a_config_that_does_not_evaluate_is_refused(read, tiny):
    with pytest.raises(ValueError, match='val_evaluator'):
        read(tiny.resnet(), val_evaluator=None)


def test_batch_norm_is_reverted_wherever_it_is():
    cfg = Config(
        dict(
            model=dict(
                backbone=dict(norm_cfg=dict(type='SyncBN', eps=1e-3)),
                heads=[dict(norm_cfg=dict(type='SyncBN')), dict(type='X')],
            )
        )
    )
    assert revert_sync_bn(cfg)
    assert cfg.model.backbone.norm_cfg == dict(type='BN', eps=1e-3)
    assert cfg.model.heads[0].norm_cfg.type == 'BN'
    assert cfg.model.heads[1].type == 'X'
    assert not revert_sync_bn(cfg)


# ------------------------------------------------------------ finding weights


@pytest.fixture
def distilled(tiny, tmp_path):
    """Work directory of a distillation, two epochs long."""
    work_dir = tmp_path / 'distilled'
    work_dir.mkdir()
    meta = dict(
        cfg=Config(dict(model=tiny.distillation())).pretty_text,
        epoch=2,
        iter=10,
    )
    student = MODELS.build(tiny.classifier(tiny.resnet()))
    weights = {
        f'architecture.{key}': value
        for key, value in student.state_dict().items()
    }
    path = work_dir / 'epoch_2.pth'
    torch.save(dict(meta=meta, state_dict=weights), path)
    (work_dir / 'last_checkpoint').write_text(str(path))
    return work_dir


def test_a_work_directory_s_student_is_exported(distilled):
    found = find_student(distilled)
    assert found == distilled / 'epoch_2_student.pth'
    trained = torch.load(distilled / 'epoch_2.pth')['state_dict']
    for key, value in torch.load(found)['state_dict'].items():
        assert torch.equal(value, trained[f'architecture.{key}'])


def test_an_export_is_made_once(distilled):
    first = find_student(distilled)
    made = first.stat().st_mtime_ns
    assert find_student(distilled / 'epoch_2.pth') == first
    assert first.stat().st_mtime_ns == made


def test_student_pth_is_taken_if_it_is_of_the_checkpoint(distilled):
    exported = export_student(distilled)
    assert exported.name == 'student.pth'
    assert find_student(distilled) == exported
    # A longer training, and a best epoch before it.
    saved = torch.load(distilled / 'epoch_2.pth')
    saved['meta']['epoch'] = 4
    for name in ('epoch_4.pth', 'best_accuracy_epoch_4.pth'):
        torch.save(saved, distilled / name)
    assert find_student(distilled) == exported
    assert find_student(distilled, 'best').name == (
        'best_accuracy_epoch_4_student.pth'
    )
    (distilled / 'last_checkpoint').write_text('epoch_4.pth')
    assert find_student(distilled).name == 'epoch_4_student.pth'
    assert torch.load(exported)['meta']['epoch'] == 2


def test_an_older_export_is_made_anew(distilled):
    exported = export_student(distilled)
    trained = (distilled / 'epoch_2.pth').stat().st_mtime
    os.utime(exported, (trained - 10, trained - 10))
    assert find_student(distilled).name == 'epoch_2_student.pth'


def test_a_student_whose_checkpoints_are_gone_is_enough(distilled):
    exported = export_student(distilled)
    (distilled / 'epoch_2.pth').unlink()
    assert find_student(distilled) == exported
    with pytest.raises(FileNotFoundError, match='save_best'):
        find_student(distilled, 'best')


def test_a_classifier_is_taken_as_it_is(student):
    assert find_student(student) == student


def test_missing_files_and_addresses_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        find_student(tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match='last checkpoint'):
        find_student(tmp_path)
    with pytest.raises(ValueError, match='download'):
        find_student('https://example.com/student.pth')


# ----------------------------------------------------------------------- runs


@pytest.fixture
def run(student, tmp_path):
    return plan_run('student', str(student), 3, tmp_path / 'runs')


def test_a_run_knows_its_weights(run, student, tmp_path):
    assert run.checkpoint == student
    assert run.digest == sha256(student)
    assert run.work_dir == tmp_path / 'runs/student/seed3'
    assert not run.work_dir.exists()


def test_the_seed_may_be_part_of_the_source(tiny, tmp_path):
    for seed in (0, 1):
        (tmp_path / f'seed{seed}').mkdir()
        path = tmp_path / f'seed{seed}/student.pth'
        save(tiny.classifier(tiny.resnet()), path)
        source = f'{tmp_path}/seed{{seed}}/student.pth'
        assert plan_run('student', source, seed, '.').checkpoint == path


def test_a_run_starts_from_the_student(run, read, tiny):
    cfg = run_config(read(tiny.resnet(frozen_stages=1)), run)
    assert cfg.model.backbone.init_cfg.checkpoint == str(run.checkpoint)
    assert cfg.model.backbone.frozen_stages == 1
    assert cfg.randomness.seed == 3
    assert cfg.work_dir == str(run.work_dir)
    assert cfg.resume


def test_from_scratch_nothing_is_loaded_and_nothing_frozen(read, tiny):
    run = plan_run('scratch', 'none', 0, 'runs')
    assert run.checkpoint is None and run.digest is None
    given = read(tiny.resnet(frozen_stages=1, norm_eval=True))
    backbone = run_config(given, run).model.backbone
    assert 'init_cfg' not in backbone
    assert backbone.frozen_stages == -1 and not backbone.norm_eval
    assert given.model.backbone.frozen_stages == 1


def test_runs_do_not_share_a_visualizer(read, tiny):
    cfg = read(tiny.resnet(), visualizer=dict(type='X', name='visualizer'))
    names = {
        run_config(cfg, plan_run(name, 'none', seed, '.')).visualizer.name
        for name in ('baseline', 'scratch')
        for seed in (0, 1)
    }
    assert len(names) == 4


def test_a_finished_run_gives_its_metrics(run, read, tiny):
    cfg = read(tiny.resnet())
    assert read_metrics(cfg, run) is None
    mark_run(cfg, run)
    assert read_metrics(cfg, run) is None
    mark_run(cfg, run, dict(mIoU=1.5))
    assert read_metrics(cfg, run) == dict(mIoU=1.5)


def test_a_run_of_another_config_is_refused(run, read, tiny):
    mark_run(read(tiny.resnet()), run, dict(mIoU=1.5))
    with pytest.raises(ValueError, match=r'(?s)config has.*\+.*depth=34'):
        read_metrics(read(tiny.resnet(depth=34)), run)


def test_a_run_from_other_weights_is_refused(run, read, tiny, student):
    cfg = read(tiny.resnet())
    mark_run(cfg, run, dict(mIoU=1.5))
    torch.manual_seed(1)
    save(tiny.classifier(tiny.resnet()), student)
    other = plan_run('student', str(student), 3, run.work_dir.parents[1])
    with pytest.raises(ValueError, match='other weights'):
        read_metrics(cfg, other)


def test_a_folder_of_something_else_is_left_alone(run, read, tiny):
    run.work_dir.mkdir(parents=True)
    (run.work_dir / 'epoch_1.pth').touch()
    with pytest.raises(ValueError, match='not made by this tool'):
        read_metrics(read(tiny.resnet()), run)


# --------------------------------------------------------------------- report


def result(name, seed, **metrics):
    run = DownstreamRun(name, seed, 'none', f'runs/{name}/seed{seed}')
    return run, {
        key.replace('coco_', 'coco/'): v for key, v in metrics.items()
    }


def test_the_table_has_every_run_and_the_gains():
    header, rows = tabulate(
        [
            result('baseline', 0, coco_bbox_mAP=0.25, coco_bbox_mAP_s=0.1),
            result('student', 0, coco_bbox_mAP=0.375, coco_bbox_mAP_s=0.2),
        ]
    )
    assert header == ['', 'AP box']
    assert rows == [
        ['baseline', '25.00'],
        ['student', '37.50'],
        ['student - baseline', '+12.50'],
    ]


def test_several_seeds_have_mean_and_deviation():
    _, rows = tabulate(
        [
            result('scratch', 0, mIoU=10.0, aAcc=50.0),
            result('scratch', 1, mIoU=12.0, aAcc=50.0),
            result('student', 0, mIoU=20.0, aAcc=40.0),
            result('student', 1, mIoU=20.0, aAcc=42.0),
        ]
    )
    assert rows == [
        ['scratch', '11.00 ± 1.41', '50.00 ± 0.00'],
        ['student', '20.00 ± 0.00', '41.00 ± 1.41'],
        ['student - scratch', '+9.00', '-9.00'],
    ]


def test_a_detector_that_finds_nothing_has_no_figure():
    _, rows = tabulate(
        [result('baseline', 0), result('student', 0, coco_bbox_mAP=0.5)]
    )
    assert rows == [
        ['baseline', '-'],
        ['student', '50.00'],
        ['student - baseline', '-'],
    ]


def test_metrics_that_are_not_known_are_shown_as_they_are():
    header, rows = tabulate([result('student', 0, PQ=3.25)])
    assert header == ['', 'PQ'] and rows == [['student', '3.25']]


def test_the_report_names_what_it_came_from(run, tmp_path):
    results = [(run, {'coco/bbox_mAP': 0.5}), result('scratch', 3)]
    path = write_report(tmp_path, 'a/detector.py', results, 'cmd', 'abc')
    text = path.read_text()
    assert text.startswith('# detector\n')
    assert '| student | 50.00 |' in text
    assert run.digest in text and 'backbone from scratch' in text
    found = json.loads((tmp_path / 'results.json').read_text())
    assert found['config'] == 'a/detector.py'
    assert found['seeds'] == [3]
    assert found['versions']['torch'] == torch.__version__.split('+')[0] or (
        found['versions']['torch'] == torch.__version__
    )
    student, scratch = found['runs']
    assert student['sha256'] == run.digest
    assert student['checkpoint'] == str(run.checkpoint)
    assert student['metrics'] == {'coco/bbox_mAP': 0.5}
    assert scratch['checkpoint'] is None
