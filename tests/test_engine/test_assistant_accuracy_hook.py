"""The accuracy of an assistant on the validation set."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mmcakd
from mmcakd.engine import AssistantAccuracyHook
from mmcakd.models.stages import build_tail, to_tokens

ROOT = Path(mmcakd.__file__).parents[1]
METHODS = ROOT / 'configs' / '_base_' / 'methods'
HOOK = dict(type='mmcakd.AssistantAccuracyHook', topk=(1, 2))
KEYS = ('assistant/accuracy/top1', 'assistant/accuracy/top2')


@pytest.fixture
def make_cfg(short_run, tiny):
    """A run of one epoch, in which a ResNet learns from a Swin."""

    def make(name='run', hooks=(HOOK,), **kwargs) -> Config:
        distiller = Config.fromfile(METHODS / 'tas.py').distiller.to_dict()
        cfg = dict(
            model=tiny.distillation(distiller=distiller),
            custom_hooks=list(hooks),
            train_cfg=dict(by_epoch=True, max_epochs=1),
        )
        return short_run(name, **cfg | kwargs)

    return make


def classify(model, images) -> torch.Tensor:
    """The assistant's scores, by the models' own parts."""
    maps, teacher = [], model.teacher.model
    handle = model.student.backbone.layer3.register_forward_hook(
        lambda module, inputs, outputs: maps.append(outputs)
    )
    model.student(images)
    handle.remove()
    tail = build_tail(teacher, 3, skip_transition=True)
    model.teacher(images)
    assistant = model.distiller.connectors.assistant
    tokens = assistant.projector(maps[0], tail.grid)
    map_ = to_tokens(tail(tokens)).mean(1)
    return teacher.head.fc(map_).softmax(1)


@torch.no_grad()
def evaluate(runner) -> tuple[torch.Tensor, dict]:
    """Scores of all validation images, and what follows from them."""
    model = runner.model.eval()
    scores, labels = [], []
    for data in runner.val_dataloader:
        data = model.data_preprocessor(data, training=False)
        scores.append(classify(model, data['inputs']))
        labels += [int(sample.gt_label) for sample in data['data_samples']]
    scores = torch.cat(scores)
    ranked = scores.argsort(1, descending=True)
    hits = ranked == torch.tensor(labels)[:, None]
    return scores, {
        key: 100 * hits[:, :k].any(1).float().mean().item()
        for k, key in enumerate(KEYS, 1)
    }


def keep_scores(runner) -> list[torch.Tensor]:
    """Let the hook of a run keep the scores that it rates."""
    (hook,) = [h for h in runner.hooks if isinstance(h, AssistantAccuracyHook)]
    kept, process = [], hook.metric.process

    def keep(data_batch, samples):
        kept.extend(sample['pred_score'].clone() for sample in samples)
        process(data_batch, samples)

    hook.metric.process = keep
    return kept


def validations(runner) -> list[dict]:
    (path,) = Path(runner.log_dir).rglob('vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if 'accuracy/top1' in line]


def logged(runner) -> dict[str, float]:
    (line,) = validations(runner)
    return {key: line[key] for key in KEYS}


def test_accuracy_is_that_of_the_whole_validation_set(make_cfg):
    runner = Runner.from_cfg(make_cfg())
    kept = keep_scores(runner)
    runner.train()
    scores, expected = evaluate(runner)
    # Three batches, the last of which is smaller.
    assert len(kept) == len(scores) == 10
    torch.testing.assert_close(torch.stack(kept), scores)
    assert logged(runner) == pytest.approx(expected)
    (log,) = Path(runner.log_dir).glob('*.log')
    assert f'{KEYS[0]}: {expected[KEYS[0]]:.4f}' in log.read_text()


def test_accuracy_is_that_of_the_averaged_weights(make_cfg):
    ema = dict(type='EMAHook', momentum=0.1)
    cfg = make_cfg(hooks=(ema, HOOK))
    runner = Runner.from_cfg(cfg)
    kept = keep_scores(runner)
    runner.train()
    trained, _ = evaluate(runner)
    saved = torch.load(Path(cfg.work_dir) / 'epoch_1.pth')
    runner.model.load_state_dict(saved['state_dict'])
    averaged, expected = evaluate(runner)
    torch.testing.assert_close(torch.stack(kept), averaged)
    assert not torch.allclose(trained, averaged, atol=1e-4)
    assert logged(runner) == pytest.approx(expected)


def test_student_is_what_it_is_without_the_hook(make_cfg):
    ends, metrics = [], []
    for name, hooks in (('with', (HOOK,)), ('without', ())):
        cfg = make_cfg(
            name,
            hooks,
            augment=True,
            train_cfg=dict(by_epoch=True, max_epochs=2),
        )
        runner = Runner.from_cfg(cfg)
        runner.train()
        saved = torch.load(Path(cfg.work_dir) / 'epoch_2.pth')
        ends.append(saved['state_dict'])
        metrics.append([line['accuracy/top1'] for line in validations(runner)])
        (best,) = Path(cfg.work_dir).glob('best_*.pth')
        assert 'assistant' not in best.name
    assert metrics[0] == metrics[1]
    for key, value in ends[0].items():
        assert torch.equal(ends[1][key], value), key


def test_nothing_is_kept_or_recorded_behind_a_validation(make_cfg):
    class Look(Hook):
        priority = 'LOWEST'
        looked = 0

        def after_val_iter(self, runner, *args, **kwargs):
            self.look(runner)

        def after_val_epoch(self, runner, metrics=None):
            self.look(runner)
            assert not runner.model.student._forward_pre_hooks

        def look(self, runner):
            distiller = runner.model.distiller
            for manager in (
                distiller.student_recorders,
                distiller.teacher_recorders,
            ):
                for recorder in manager.recorders.values():
                    assert not recorder.recording
                    assert not any(recorder.data_buffer)
            self.looked += 1

    runner = Runner.from_cfg(make_cfg())
    look = Look()
    runner.register_hook(look)
    runner.train()
    assert look.looked == 4


def test_validation_that_failed_leaves_the_next_one_right(make_cfg):
    class Fail(Hook):
        failed = False

        def before_val_iter(self, runner, *args, **kwargs):
            if not self.failed:
                self.failed = True
                raise RuntimeError('out of luck')

    runner = Runner.from_cfg(make_cfg())
    runner.register_hook(Fail(), priority='LOWEST')
    kept = keep_scores(runner)
    with pytest.raises(RuntimeError, match='out of luck'):
        runner.train()
    runner.val_loop.run()
    scores, _ = evaluate(runner)
    assert len(runner.model.student._forward_pre_hooks) == 0
    torch.testing.assert_close(torch.stack(kept), scores)


def test_validation_in_half_precision(make_cfg):
    runner = Runner.from_cfg(make_cfg(val_cfg=dict(fp16=True)))
    kept = keep_scores(runner)
    runner.train()
    scores, _ = evaluate(runner)
    kept = torch.stack(kept)
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept, scores, atol=0.05, rtol=0.05)
    assert not torch.equal(kept, scores)


# ---------------------------------------------------------------- processes


def test_two_processes_rate_every_image_once(
    make_cfg, tiny, tmp_path, train_in_processes, read_states
):
    distiller = Config.fromfile(METHODS / 'tas.py').distiller.to_dict()
    teacher = tiny.classifier(tiny.swin())
    torch.save(
        dict(state_dict=tiny.build(teacher).state_dict()), tmp_path / 't.pth'
    )

    def make(name):
        cfg = make_cfg(
            name,
            model=tiny.distillation(
                # Without BatchNorm and a rate, no step changes it.
                architecture=tiny.classifier(tiny.convnext()),
                teacher=teacher,
                teacher_ckpt=str(tmp_path / 't.pth'),
                distiller=distiller,
            ),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
            param_scheduler=None,
            default_hooks=dict(checkpoint=None),
        )
        cfg.train_dataloader.dataset.indices = 4
        # Nine of the images, so that one is seen by both processes.
        cfg.val_dataloader.dataset.indices = list(range(1, 10))
        return cfg

    train_in_processes(one=(make('one'), 1), two=(make('two'), 2))
    (alone,) = read_states('one', 1, 'metrics')
    assert set(KEYS) < set(alone)
    for metrics in read_states('two', 2, 'metrics'):
        assert metrics == pytest.approx(alone)


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    'name', ['helper', 'student_to_teacher', 'loss_assistant']
)
def test_wrong_name_is_told_before_training(make_cfg, name):
    cfg = make_cfg(hooks=(HOOK | dict(connector=name),))
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match=f"'{name}'.*are \\['assistant'\\]"):
        runner.train()
    assert runner.iter == 0


def test_distillation_without_an_assistant_is_told_before_training(
    make_cfg, tiny
):
    cfg = make_cfg(model=tiny.distillation())
    with pytest.raises(ValueError, match=r'are \[\].*remove the hook'):
        Runner.from_cfg(cfg).train()


def test_plain_model_is_told_before_training(make_cfg, tiny):
    cfg = make_cfg(model=tiny.classifier(tiny.resnet()))
    with pytest.raises(ValueError, match='remove the hook'):
        Runner.from_cfg(cfg).train()
