import os
import pickle
from copy import deepcopy

import pytest
import torch
from mmengine.config import Config
from mmpretrain import get_model

from mmcakd.registry import MODELS
from mmcakd.utils import (
    export_student,
    find_checkpoint,
    student_config,
    student_state_dict,
)


@pytest.fixture
def cfg(tiny):
    return Config(
        dict(
            default_scope='mmpretrain',
            custom_imports=dict(
                imports=['mmcakd'], allow_failed_imports=False
            ),
            data_preprocessor=dict(num_classes=tiny.classes),
            model=tiny.distillation(),
            default_hooks=dict(
                logger=dict(type='LoggerHook'),
                seed=dict(type='mmcakd.SeedByEpochHook'),
            ),
            custom_hooks=[dict(type='mmcakd.ExportStudentHook')],
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            test_cfg=dict(),
        )
    )


@pytest.fixture
def checkpoint(cfg, tiny):
    """What a Runner saves after some training with an EMAHook."""
    model = tiny.build_distillation()
    averaged = deepcopy(model)
    for parameter in averaged.parameters():
        parameter.data.add_(1)
    return dict(
        meta=dict(
            cfg=cfg.pretty_text,
            epoch=3,
            dataset_meta=dict(classes=list('abcde')),
        ),
        state_dict=averaged.state_dict(),
        ema_state_dict={
            f'module.{key}': value for key, value in model.state_dict().items()
        },
        optimizer=dict(lr=0.1),
    )


@pytest.fixture
def saved(checkpoint, tmp_path):
    path = tmp_path / 'epoch_3.pth'
    torch.save(checkpoint, path)
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_3.pth')
    return path


def test_export_loads_in_mmpretrain_with_every_key(saved):
    out = export_student(saved)
    assert out.name == 'epoch_3_student.pth'
    exported = torch.load(out)
    model = get_model(str(out.with_suffix('.py')), pretrained=str(out))
    keys = model.load_state_dict(exported['state_dict'], strict=False)
    assert not keys.missing_keys and not keys.unexpected_keys
    assert model._dataset_meta['classes'] == list('abcde')


def test_export_holds_weights_and_meta_only(saved, checkpoint):
    exported = torch.load(export_student(saved))
    assert set(exported) == {'meta', 'state_dict'}
    assert exported['meta']['epoch'] == 3
    for key, weight in exported['state_dict'].items():
        assert torch.equal(
            weight, checkpoint['state_dict'][f'architecture.{key}']
        )


def test_exported_student_predicts_as_in_the_distillation(
    saved, checkpoint, tiny
):
    distillation = tiny.build_distillation()
    distillation.load_state_dict(checkpoint['state_dict'])
    out = export_student(saved)
    plain = get_model(str(out.with_suffix('.py')), pretrained=str(out))
    inputs, _ = tiny.batch()
    with torch.no_grad():
        expected = distillation.eval()(inputs, mode='tensor')
        assert torch.equal(plain(inputs, mode='tensor'), expected)


def test_export_of_a_work_directory_takes_its_last_checkpoint(saved):
    out = export_student(saved.parent)
    assert out == saved.parent / 'student.pth'


def test_export_of_an_export_is_the_same(saved):
    first = export_student(saved)
    second = export_student(first, first.with_name('again.pth'))
    first, second = (
        torch.load(path)['state_dict'] for path in (first, second)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_misfit_leaves_no_file_and_keeps_the_old_one(saved, checkpoint):
    out = saved.parent / 'student.pth'
    out.write_text('old')
    before = set(os.listdir(saved.parent))
    del checkpoint['state_dict']['architecture.head.fc.bias']
    torch.save(checkpoint, saved)
    with pytest.raises(RuntimeError, match='head.fc.bias'):
        export_student(saved.parent)
    assert set(os.listdir(saved.parent)) == before
    assert out.read_text() == 'old'


def test_checkpoint_without_config_asks_for_one(saved, checkpoint, cfg):
    del checkpoint['meta']['cfg']
    torch.save(checkpoint, saved)
    with pytest.raises(ValueError, match='give the config'):
        export_student(saved)
    assert export_student(saved, cfg=cfg).is_file()


def test_name_of_the_export_must_be_a_pth(saved):
    with pytest.raises(ValueError, match='.pth'):
        export_student(saved, saved.with_suffix('.py'))


@pytest.mark.parametrize('ema, shift', [(None, 1), (True, 1), (False, 0)])
def test_averaged_weights_are_the_default(checkpoint, ema, shift):
    key = 'head.fc.bias'
    trained = checkpoint['ema_state_dict'][f'module.architecture.{key}']
    weights = student_state_dict(checkpoint, ema)
    assert torch.equal(weights[key], trained + shift)


def test_averaged_weights_are_not_made_up(checkpoint):
    del checkpoint['ema_state_dict']
    with pytest.raises(ValueError, match='EMAHook'):
        student_state_dict(checkpoint, ema=True)


def test_plain_config_has_nothing_of_distillation_or_training(cfg):
    plain = student_config(cfg)
    assert plain.model.type == 'mmpretrain.ImageClassifier'
    assert 'mmcakd' not in plain.pretty_text
    assert not {'optim_wrapper', 'custom_hooks'} & set(plain)
    assert plain.data_preprocessor == cfg.data_preprocessor
    assert list(plain.default_hooks) == ['logger']


def test_config_with_parts_of_mmcakd_imports_it(cfg):
    cfg.model.architecture.backbone = dict(type='mmcakd.SomeBackbone')
    assert student_config(cfg).custom_imports.imports == ['mmcakd']


def test_plain_config_passes_without_its_training(cfg, tiny):
    cfg.model = tiny.classifier(tiny.resnet())
    assert student_config(cfg).model == cfg.model


@pytest.mark.parametrize('place', ['algorithm', 'config'])
@pytest.mark.parametrize('own', [False, True])
def test_student_beside_named_inputs_gets_the_images_preprocessor(
    cfg, tiny, saved, tmp_path, place, own
):
    image = dict(
        type='mmpretrain.ClsDataPreprocessor',
        mean=[10.0, 20.0, 30.0],
        std=[2.0, 3.0, 4.0],
        num_classes=tiny.classes,
    )
    named = dict(
        type='mmcakd.NamedInputsPreprocessor',
        image=image,
        depth=dict(mean=[5.0], std=[2.0]),
    )
    if own:
        cfg.model.architecture.data_preprocessor = dict(mean=[0], std=[1])
    cfg.pop('data_preprocessor')
    (cfg.model if place == 'algorithm' else cfg).data_preprocessor = named
    out = export_student(saved, tmp_path / 'plain.pth', cfg)
    config = out.with_suffix('.py')
    assert 'mmcakd' not in config.read_text()
    model = get_model(str(config), pretrained=str(out))
    assert type(model.data_preprocessor).__name__ == 'ClsDataPreprocessor'
    assert model.data_preprocessor.mean.flatten().tolist() == image['mean']


def test_student_that_is_named_is_spelled_out(cfg):
    name = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    for architecture in (name, dict(cfg_path=name, pretrained=False)):
        cfg.model.architecture = architecture
        plain = student_config(cfg)
        assert plain.model.backbone.type == 'ResNet_CIFAR'
        assert plain.data_preprocessor.num_classes == 10
        MODELS.build(plain.model | dict(_scope_='mmpretrain'))


def test_plain_config_fetches_no_weights(cfg):
    backbone = cfg.model.architecture.backbone
    backbone.init_cfg = dict(type='Pretrained', checkpoint='some.pth')
    cfg.model.architecture.pretrained = True
    plain = student_config(cfg)
    assert 'init_cfg' not in plain.model.backbone
    assert plain.model.pretrained is False
    assert backbone.init_cfg.checkpoint == 'some.pth'


@pytest.fixture
def leave(tmp_path):
    """Leave checkpoints in a folder, as a run does that knows its best."""

    def leave(name: str, iteration: int, folder=tmp_path, **best) -> None:
        info = {f'best_ckpt{key}': path for key, path in best.items()}
        folder.mkdir(exist_ok=True)
        torch.save(
            dict(
                meta=dict(iter=iteration),
                state_dict=dict(weight=torch.ones(1)),
                message_hub=dict(runtime_info=info),
            ),
            folder / name,
        )
        if not name.startswith('best_'):
            pointer = tmp_path / 'last_checkpoint'
            pointer.write_text(str(folder / name))

    return leave


def test_best_checkpoint_is_the_one_that_the_run_knew(tmp_path, leave):
    # The newest file is left over from another run, with another metric.
    run = {'': 'there/best_accuracy_top1_epoch_2.pth'}
    leave('best_accuracy_top1_epoch_2.pth', 8, **run)
    leave('epoch_4.pth', 16, **run)
    leave('best_loss_epoch_9.pth', 36, **{'': 'best_loss_epoch_9.pth'})
    for which in ('best', 'accuracy/top1'):
        found = find_checkpoint(tmp_path, which)
        assert found == tmp_path / 'best_accuracy_top1_epoch_2.pth'


def test_of_several_metrics_one_is_named(tmp_path, leave):
    run = {
        '_accuracy/top1': 'best_accuracy_top1_epoch_1.pth',
        '_single-label/recall': 'best_single-label_recall_epoch_3.pth',
    }
    # The first knows nothing of the second, and neither is the last.
    for (key, name), iteration in zip(run.items(), (4, 12), strict=True):
        leave(name, iteration, **(run if iteration == 12 else {key: name}))
    with pytest.raises(
        ValueError, match="recall; name one, e.g. which='accuracy/top1'"
    ):
        find_checkpoint(tmp_path, 'best')
    for key, name in run.items():
        assert find_checkpoint(tmp_path, key[1:]) == tmp_path / name
    with pytest.raises(FileNotFoundError, match='only by accuracy/top1, sin'):
        find_checkpoint(tmp_path, 'accuracy/top5')


def test_checkpoints_are_found_in_another_folder(tmp_path, leave):
    folder = tmp_path / 'out'
    best = str(folder / 'best_accuracy_top1_epoch_1.pth')
    leave('best_accuracy_top1_epoch_1.pth', 4, folder, **{'': best})
    leave('epoch_2.pth', 8, folder, **{'': best})
    assert find_checkpoint(tmp_path) == folder / 'epoch_2.pth'
    assert str(find_checkpoint(tmp_path, 'best')) == best


@pytest.mark.parametrize(
    'which, cure', [('last', 'CheckpointHook'), ('best', 'save_best')]
)
def test_missing_checkpoint_says_how_to_get_one(which, cure, tmp_path):
    with pytest.raises(FileNotFoundError, match=cure):
        find_checkpoint(tmp_path, which)


def test_checkpoint_with_code_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'made'),)

    path = tmp_path / 'hostile.pth'
    torch.save(dict(state_dict=dict(weight=Hostile())), path)
    with pytest.raises(RuntimeError, match='more than weights'):
        export_student(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(RuntimeError, match='more than weights'):
        export_student(path)
    assert not (tmp_path / 'made').exists()


def test_truncated_checkpoint_is_named(saved):
    saved.write_bytes(saved.read_bytes()[:5000])
    with pytest.raises(RuntimeError, match='epoch_3.pth could not be read'):
        export_student(saved)
