"""The graph of a distiller: what it keeps, prepares and reads."""

import copy

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmcakd.models.connectors import BaseConnector


class Scale(BaseConnector):
    """Multiply by a parameter; `prepare` reads the width."""

    def prepare(self, inputs, like):
        (feature,) = inputs.values()
        if isinstance(like, dict):
            like = {name: x.shape for name, x in like.items()}
        elif like is not None:
            like = like.shape
        self.shapes = (feature.shape, like)
        self.factor = nn.Parameter(torch.ones(feature.shape[1], 1, 1))

    def forward(self, feature):
        return feature * self.factor


class Sum(nn.Module):
    """A loss of any number of arguments, one of them optional."""

    def forward(self, first, second, third=None):
        total = first.sum() + second.sum()
        return total if third is None else total + third.sum()


class Join(nn.Module):
    """A connector of several inputs."""

    def forward(self, left, right):
        return left + right, left - right


@pytest.fixture
def build(tiny):
    """Build a distillation between equal ResNets from parts of a distiller."""

    def build_model(**parts):
        distiller = dict(
            student_recorders=tiny.recorders(),
            teacher_recorders=tiny.recorders(),
            **parts,
        )
        return tiny.build_distillation(
            teacher=tiny.classifier(tiny.resnet()),
            distiller=distiller,
            student_loss_weight=1.0,
        )

    return build_model


# --------------------------------------------------------------------- graph


def test_connectors_may_read_connectors_in_any_order(build, tiny):
    model = build(
        connectors=dict(
            # named before what they read
            last=dict(
                type=Join,
                inputs=dict(
                    left=dict(connector='first', connector_idx=0),
                    right=dict(connector='first', connector_idx=1),
                ),
            ),
            first=dict(
                type=Join,
                inputs=dict(
                    left=tiny.record('stages', True, 3),
                    right=tiny.record('stages', False, 3),
                ),
            ),
        ),
        distill_losses=dict(loss=dict(type=Sum)),
        loss_forward_mappings=dict(
            loss=dict(
                first=dict(connector='last', connector_idx=0),
                second=dict(connector='last', connector_idx=1),
            )
        ),
    ).eval()
    images, samples = tiny.batch()
    maps = {}
    for name, net in (
        ('student', model.student),
        ('teacher', model.teacher.model),
    ):
        net.backbone.layer4.register_forward_hook(
            lambda m, i, o, name=name: maps.update({name: o})
        )
    loss = model(images, samples, mode='loss')['distill.loss']
    # (s + t) + (s - t) and (s + t) - (s - t)
    expected = 2 * maps['student'].sum() + 2 * maps['teacher'].sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_output_of_a_connector_without_index_is_passed_whole(build, tiny):
    class Both(nn.Module):
        def forward(self, pair):
            left, right = pair
            return (left + right).sum()

    model = build(
        connectors=dict(
            join=dict(
                type=Join,
                inputs=dict(
                    left=tiny.record('logits', True),
                    right=tiny.record('logits', False),
                ),
            )
        ),
        distill_losses=dict(loss=dict(type=Both)),
        loss_forward_mappings=dict(loss=dict(pair=dict(connector='join'))),
    ).eval()
    images, samples = tiny.batch()
    loss = model(images, samples, mode='loss')['distill.loss']
    expected = 2 * model.student(images, mode='tensor').sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_optional_argument_of_a_loss_may_be_left_out(build, tiny):
    mapping = dict(
        first=tiny.record('logits', True), second=tiny.record('logits', False)
    )
    data = tiny.batch()
    values = []
    for extra in ({}, dict(third=tiny.record('logits', False))):
        torch.manual_seed(0)
        model = build(
            distill_losses=dict(loss=dict(type=Sum)),
            loss_forward_mappings=dict(loss=mapping | extra),
        ).eval()
        values.append(model(*data, mode='loss')['distill.loss'].item())
    assert values[0] != values[1]


def test_stage_recorder_without_index_hands_over_all_four(build, tiny):
    class Count(nn.Module):
        def forward(self, stages):
            assert len(stages) == 4
            return sum(stage.mean() for stage in stages)

    model = build(
        distill_losses=dict(loss=dict(type=Count)),
        loss_forward_mappings=dict(
            loss=dict(stages=tiny.record('stages', True))
        ),
    )
    loss = model.train()(*tiny.batch(), mode='loss')['distill.loss']
    assert loss.requires_grad


def test_only_stages_that_are_read_stay_in_memory(tiny):
    model = tiny.build_distillation()
    kept = {}
    compute = model.distiller.compute_distill_losses

    def look(data_samples):
        for name in ('student', 'teacher'):
            manager = getattr(model.distiller, f'{name}_recorders')
            buffers = manager.get_recorder('stages').data_buffer
            kept[name] = [index for index in range(4) if buffers[index]]
        return compute(data_samples)

    model.distiller.compute_distill_losses = look
    model(*tiny.batch(), mode='loss')
    # The third stage of the teacher was only read for its size.
    assert kept == dict(student=[2, 3], teacher=[3])


def turned(cfg):
    """The same config with the keys of every dict the other way round."""
    if isinstance(cfg, dict):
        return {key: turned(cfg[key]) for key in reversed(cfg)}
    if isinstance(cfg, list | tuple):
        return type(cfg)(turned(item) for item in cfg)
    return cfg


def test_order_of_keys_does_not_matter(tiny):
    # MMEngine sorts them when it dumps a config.
    data = tiny.batch()
    results = []
    for cfg in (tiny.distillation(), turned(tiny.distillation())):
        torch.manual_seed(0)
        model = tiny.build(cfg).train()
        losses = model(*data, mode='loss')
        names = [name for name, _ in model.named_parameters()]
        results.append((names, model.state_dict(), losses))
    (names, weights, losses), (others, turned_weights, turned_losses) = results
    # An optimizer's state is resumed by the place of a parameter.
    assert names == others
    for name, weight in weights.items():
        assert torch.equal(turned_weights[name], weight), name
    for name, loss in losses.items():
        assert torch.equal(turned_losses[name], loss), name


def test_unknown_output_of_a_connector_is_named(tiny):
    distiller = tiny.scalekd()
    mapping = distiller['loss_forward_mappings']['loss_s3_original']
    mapping['student'] = dict(connector='tail', connector_idx='orig')
    with pytest.raises(ValueError, match="'tail'.*'orig'.*original"):
        tiny.build_distillation(distiller=distiller)


# --------------------------------------------------------------- preparation


def test_connectors_read_their_sizes_from_the_models(build, tiny):
    model = build(
        connectors=dict(
            alone=dict(type=Scale),
            wired=dict(
                type=Scale,
                inputs=dict(feature=tiny.record('stages', True, 1)),
                shape_like=tiny.record('stages', False, 2),
            ),
        ),
        distill_losses=dict(loss=dict(type=Sum)),
        loss_forward_mappings=dict(
            loss=dict(
                first=tiny.record('stages', True, 3) | dict(connector='alone'),
                second=dict(connector='wired'),
            )
        ),
    )
    connectors = model.distiller.connectors
    assert connectors.alone.shapes == ((2, 32, 2, 2), None)
    assert connectors.wired.shapes == ((2, 8, 8, 8), (2, 16, 4, 4))
    trained = {name for name, _ in model.named_parameters()}
    assert 'distiller.connectors.alone.factor' in trained


def scaled(tiny, **like) -> dict:
    """A connector with a `shape_like`, and a loss that reads it."""
    return dict(
        connectors=dict(
            scale=dict(
                type=Scale,
                inputs=dict(feature=tiny.record('stages', True, 1)),
                shape_like=like,
            )
        ),
        distill_losses=dict(loss=dict(type=Sum)),
        loss_forward_mappings=dict(
            loss=dict(
                first=dict(connector='scale'),
                second=tiny.record('logits', False),
            )
        ),
    )


def test_shape_like_may_name_several_records(build, tiny):
    model = build(
        **scaled(
            tiny,
            feature=tiny.record('stages', False, 2),
            logits=tiny.record('logits', False),
        )
    )
    _, like = model.distiller.connectors.scale.shapes
    assert like == dict(feature=(2, 16, 4, 4), logits=(2, tiny.classes))
    # Only read before training: no stage of the teacher is kept.
    recorder = model.distiller.teacher_recorders.get_recorder('stages')
    assert recorder.stages_to_keep == set()


def test_shape_like_of_an_unknown_recorder_is_named(build, tiny):
    with pytest.raises(ValueError, match="shape_like.*scale.*'features'"):
        build(**scaled(tiny, **tiny.record('features', False, 2)))
    with pytest.raises(ValueError, match="shape_like.*scale.*'features'"):
        build(**scaled(tiny, like=tiny.record('features', False, 2)))


class Widen(BaseConnector):
    """Give a feature the width of another one."""

    def prepare(self, inputs, like):
        (feature,) = inputs.values()
        self.linear = nn.Conv2d(feature.shape[1], like.shape[1], 1)

    def forward(self, feature):
        return self.linear(feature)


def widened(tiny, **like) -> dict:
    """Connectors of which each takes its width from another, and a loss."""
    return dict(
        connectors={
            name: dict(
                type=Widen,
                inputs=dict(feature=tiny.record('stages', True, 1)),
                shape_like=reference,
            )
            for name, reference in like.items()
        },
        distill_losses=dict(loss=dict(type=Sum)),
        loss_forward_mappings=dict(
            loss=dict(
                zip(
                    ('first', 'second', 'third'),
                    [dict(connector=name) for name in like],
                    strict=False,
                )
            )
        ),
    )


def test_shape_like_may_name_a_connector(build, tiny):
    # By name, `a` comes first; `b` has to be built before it.
    model = build(
        **widened(
            tiny,
            a=dict(connector='b'),
            b=dict(connector='c'),
            c=tiny.record('stages', False, 3),
        )
    )
    distiller = model.distiller
    assert distiller.graph.order == ['c', 'b', 'a']
    widths = [c.linear.out_channels for c in distiller.connectors.values()]
    assert widths == [32, 32, 32]
    losses = model.train()(*tiny.batch(), mode='loss')
    assert losses['distill.loss'].requires_grad


def test_shape_like_may_name_one_output_of_a_connector(build, tiny):
    parts = widened(tiny, a=dict(connector='b', connector_idx=1), b={})
    parts['connectors']['b'] = dict(
        type=Join,
        inputs=dict(
            left=tiny.record('stages', True, 3),
            right=tiny.record('stages', False, 3),
        ),
    )
    parts['loss_forward_mappings']['loss']['second']['connector_idx'] = 0
    model = build(**parts)
    assert model.distiller.connectors.a.linear.out_channels == 32


def test_shape_like_may_name_connectors_among_several(build, tiny):
    parts = scaled(
        tiny, logits=tiny.record('logits', False), map=dict(connector='wide')
    )
    parts['connectors']['wide'] = dict(
        type=Widen,
        inputs=dict(feature=tiny.record('stages', True, 1)),
        shape_like=tiny.record('stages', False, 2),
    )
    mapping = parts['loss_forward_mappings']['loss']
    mapping['third'] = dict(connector='wide')
    model = build(**parts)
    _, like = model.distiller.connectors.scale.shapes
    assert like == dict(logits=(2, tiny.classes), map=(2, 16, 8, 8))


def test_shape_like_that_closes_a_circle_is_refused(build, tiny):
    with pytest.raises(ValueError, match='circle: a -> b -> a'):
        build(**widened(tiny, a=dict(connector='b'), b=dict(connector='a')))
    with pytest.raises(ValueError, match='circle: a -> a'):
        build(
            **widened(
                tiny,
                a=dict(connector='a'),
                b=tiny.record('stages', False, 2),
            )
        )


def test_shape_like_of_an_unknown_connector_is_named(build, tiny):
    parts = widened(
        tiny, a=dict(connector='z'), b=tiny.record('stages', False, 2)
    )
    with pytest.raises(ValueError, match="shape_like.*'a'.*'z'"):
        build(**parts)


def test_connector_that_only_gives_a_shape_is_unused(build, tiny):
    parts = widened(
        tiny,
        a=dict(connector='c'),
        b=tiny.record('stages', False, 2),
        c=tiny.record('stages', False, 3),
    )
    del parts['loss_forward_mappings']['loss']['third']
    with pytest.raises(ValueError, match=r"no loss or connector.*\['c'\]"):
        build(**parts)


# ----------------------------------------------------------- one connector run


@pytest.fixture
def joined(build, tiny):
    """A model whose connector `sum` reads `join`, and `label` a label."""

    class Labels(nn.Module):
        def forward(self, feature, label):
            return feature.mean() + label.float().mean()

    model = build(
        connectors=dict(
            join=dict(
                type=Join,
                inputs=dict(
                    left=tiny.record('stages', True, 3),
                    right=tiny.record('stages', False, 3),
                ),
            ),
            label=dict(
                type=Labels,
                inputs=dict(
                    feature=tiny.record('stages', True, 3),
                    label=dict(label='hard'),
                ),
            ),
            sum=dict(
                type=Sum,
                inputs=dict(
                    first=dict(connector='join', connector_idx=0),
                    second=dict(connector='join', connector_idx=1),
                ),
            ),
        ),
        distill_losses=dict(loss=dict(type=Sum)),
        loss_forward_mappings=dict(
            loss=dict(
                first=dict(connector='sum'), second=dict(connector='label')
            )
        ),
    ).eval()
    images, _ = tiny.batch()
    with (
        model.distiller.step(dict(image=images), None) as step,
        torch.no_grad(),
    ):
        with step.recording('teacher'):
            model.teacher(images)
        with step.recording('student'):
            model.student(images)
        yield model, step


def test_one_connector_runs_in_a_step(joined):
    model, step = joined
    # `label`, which would need labels, is not read by it.
    assert model.distiller.graph.order == ['join', 'label', 'sum']
    output = model.distiller.run_connector('sum', step)
    images = step.inputs['image']
    expected = 2 * model.student.backbone(images)[0].sum()
    torch.testing.assert_close(output, expected)


def test_connector_without_records_says_so(joined):
    model, step = joined
    model.distiller.run_connector('join', step)
    with step:
        pass
    for manager in model.distiller.recorders.values():
        stages = manager.get_recorder('stages')
        assert not any(stages.data_buffer)
        assert not manager.get_recorder('logits').data_buffer
    with pytest.raises(RuntimeError, match='recorded nothing|recorded 0'):
        model.distiller.run_connector('join', step)


@pytest.mark.parametrize('name', ['sums', 'loss'])
def test_connector_that_is_not_there_is_named(joined, name):
    model, step = joined
    with pytest.raises(ValueError, match=f"no connector '{name}'.*'join'"):
        model.distiller.run_connector(name, step)
    # The records are still there.
    model.distiller.run_connector('sum', step)


# ---------------------------------------------------------- no trace is left


def test_trying_the_graph_leaves_no_trace(tiny):
    student = tiny.build(tiny.classifier(tiny.resnet()))
    teacher = tiny.build(tiny.classifier(tiny.swin()))
    student.train()
    before = [copy.deepcopy(m.state_dict()) for m in (student, teacher)]
    model = tiny.build_distillation(architecture=student, teacher=teacher)
    after = [m.state_dict() for m in (student, teacher)]
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    # Projectors normalise by nothing yet, and everything is in train mode.
    for name, value in model.distiller.state_dict().items():
        if name.endswith('running_mean'):
            assert not value.any(), name
        if name.endswith('num_batches_tracked'):
            assert value == 0, name
    assert all(
        module.training for module in [student, *model.distiller.modules()]
    )
    assert all(p.grad is None for p in model.parameters())


def test_models_with_dropout_are_tried_without_drawing(tiny):
    torch.manual_seed(3)
    student = tiny.build(tiny.classifier(tiny.vit(drop_rate=0.5)))
    teacher = tiny.build(tiny.classifier(tiny.swin(drop_path_rate=0.5)))
    state = torch.get_rng_state()
    tiny.build_distillation(
        architecture=student, teacher=teacher, distiller=tiny.logit_kd()
    )
    assert torch.equal(torch.get_rng_state(), state)


# -------------------------------------------------------------------- labels


def test_label_of_unknown_kind_is_refused(build, tiny):
    with pytest.raises(ValueError, match='auto.*got .mixed.'):
        build(
            distill_losses=dict(loss_kd=dict(type=Sum)),
            loss_forward_mappings=dict(
                loss_kd=dict(
                    first=tiny.record('logits', True),
                    second=dict(label='mixed'),
                )
            ),
        )


@pytest.mark.parametrize('kind', ['hard', 'index', 'soft', 'auto'])
def test_mixed_batches_and_labels_that_are_not(tiny, kind):
    student = tiny.classifier(tiny.resnet()) | dict(
        train_cfg=dict(augments=dict(type='Mixup', alpha=0.8))
    )
    cfg = dict(
        architecture=student,
        data_preprocessor=dict(num_classes=tiny.classes),
        distiller=dict(
            student_recorders=tiny.recorders(),
            teacher_recorders=tiny.recorders(),
            distill_losses=dict(loss_kd=dict(type=Sum)),
            loss_forward_mappings=dict(
                loss_kd=dict(
                    first=tiny.record('logits', True),
                    second=dict(label=kind),
                )
            ),
        ),
    )
    if kind in ('soft', 'auto'):
        tiny.build_distillation(**cfg)
    else:
        with pytest.raises(ValueError, match=f'{kind}.*MixUp, CutMix'):
            tiny.build_distillation(**cfg)


# ----------------------------------------------------------------- gradients


def test_statistic_without_gradient_is_no_error(build, tiny):
    model = build(
        distill_losses=dict(loss_kd=dict(type=Sum), agreement=dict(type=Sum)),
        loss_forward_mappings=dict(
            loss_kd=dict(
                first=tiny.record('logits', True),
                second=tiny.record('logits', False),
            ),
            agreement=dict(
                first=tiny.record('logits', False),
                second=tiny.record('logits', False),
            ),
        ),
    )
    losses = model.train()(*tiny.batch(), mode='loss')
    total, log = model.parse_losses(losses)
    assert 'distill.agreement' in log
    expected = losses['student.loss'] + losses['distill.loss_kd']
    assert total.item() == pytest.approx(expected.item())


def test_loss_of_the_teacher_alone_is_refused(tiny):
    distiller = dict(
        student_recorders=tiny.recorders(),
        teacher_recorders=tiny.recorders(),
        distill_losses=dict(loss_kd=dict(type=Sum)),
        loss_forward_mappings=dict(
            loss_kd=dict(
                first=tiny.record('logits', False),
                second=tiny.record('stages', False, 3),
            )
        ),
    )
    with pytest.raises(ValueError, match='loss_kd.*reads the teacher alone'):
        tiny.build_distillation(distiller=distiller)
    # As where only connectors are trained.
    model = tiny.build_distillation(
        distiller=distiller, student_trainable=False
    )
    with pytest.raises(RuntimeError, match='loss_kd depends on nothing'):
        model.train()(*tiny.batch(), mode='loss')
    # Without a gradient there is nothing to say.
    model.eval()(*tiny.batch(), mode='loss')
    with torch.no_grad():
        model.train()(*tiny.batch(), mode='loss')


def test_a_dumped_config_builds_the_same_model(tiny, tmp_path):
    """MMEngine sorts the keys of what it dumps; nothing may depend on them."""
    cfg = Config(dict(model=tiny.distillation()))
    cfg.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    assert list(dumped.model.distiller.connectors) != list(
        cfg.model.distiller.connectors
    )
    models = []
    for source in (cfg, dumped):
        torch.manual_seed(0)
        models.append(tiny.build(source.model))
    first, second = models
    names = [name for name, _ in first.named_parameters()]
    assert names == [name for name, _ in second.named_parameters()]
    for (name, p), q in zip(
        first.named_parameters(), second.parameters(), strict=True
    ):
        assert torch.equal(p, q), name
    images, samples = tiny.batch()
    second.teacher.load_state_dict(first.teacher.state_dict())
    losses = [m.train().loss(images, samples) for m in models]
    for name, loss in losses[0].items():
        assert torch.equal(loss, losses[1][name]), name
