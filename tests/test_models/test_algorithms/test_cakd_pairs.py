"""The projectors of CAKD in whole training steps, in both directions."""

import copy

import pytest
import torch

QKV = dict(qkv=dict(type='mmcakd.QKV'))


def beit(tiny) -> dict:
    backbone = dict(
        type='BEiTViT',
        arch=dict(
            embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32
        ),
        img_size=64,
        patch_size=16,
    )
    head = dict(type='LinearClsHead', num_classes=tiny.classes, in_channels=16)
    return dict(
        type='mmpretrain.ImageClassifier', backbone=backbone, head=head
    )


KINDS = dict(
    vit=lambda tiny: tiny.classifier(tiny.vit()),
    swin=lambda tiny: tiny.classifier(tiny.swin()),
    beit=beit,
    resnet=lambda tiny: tiny.classifier(tiny.resnet()),
)


def sides(name: str) -> dict:
    return {
        side: dict(connector=name, connector_idx=side)
        for side in ('student', 'teacher')
    }


def forward(tiny, stage: int = 2, **pca) -> dict:
    """PCA and GL projectors for a teacher with attention."""
    feature = tiny.record('stages', True, stage)
    last = tiny.record('stages', False, 3)
    return dict(
        type='mmcakd.CrossArchDistiller',
        student_recorders=tiny.recorders(),
        teacher_recorders=tiny.recorders() | QKV,
        connectors=dict(
            pca=dict(
                type='mmcakd.PCAConnector',
                inputs=dict(feature=feature, qkv=tiny.record('qkv', False)),
            )
            | pca,
            glp=dict(
                type='mmcakd.GLPConnector',
                inputs=dict(feature=feature),
                shape_like=last,
            ),
        ),
        distill_losses=dict(
            loss_pca=dict(type='mmcakd.PCALoss'),
            loss_glp=dict(type='mmcakd.MSELoss'),
        ),
        loss_forward_mappings=dict(
            loss_pca=sides('pca'),
            loss_glp=dict(student=dict(connector='glp'), teacher=last),
        ),
    )


def inverse(tiny) -> dict:
    """iPCA and iGL projectors and a router for a teacher without."""
    last = tiny.record('stages', False, 3)
    return dict(
        type='mmcakd.CrossArchDistiller',
        student_recorders=tiny.recorders() | QKV,
        teacher_recorders=tiny.recorders(),
        connectors=dict(
            ipca=dict(
                type='mmcakd.InversePCAConnector',
                inputs=dict(qkv=tiny.record('qkv', True), feature=last),
            ),
            igl=dict(
                type='mmcakd.GLPConnector',
                inputs=dict(feature=tiny.record('stages', True, 3)),
                shape_like=last,
            ),
            router=dict(
                type='mmcakd.RouterConnector',
                inputs=dict(
                    student=tiny.record('stages', True),
                    teacher=tiny.record('stages', False),
                ),
            ),
        ),
        distill_losses=dict(
            loss_ipca=dict(type='mmcakd.PCALoss'),
            loss_igl=dict(type='mmcakd.MSELoss'),
            loss_router=dict(type='mmcakd.RouterLoss', anneal_iters=10),
        ),
        loss_forward_mappings=dict(
            loss_ipca=sides('ipca'),
            loss_igl=dict(student=dict(connector='igl'), teacher=last),
            loss_router=sides('router'),
        ),
    )


def build(tiny, teacher, student, distiller, **kwargs):
    model = tiny.build_distillation(
        architecture=KINDS[student](tiny),
        teacher=KINDS[teacher](tiny),
        distiller=distiller,
        student_loss_weight=0.0,
        **kwargs,
    )
    return model.train()


def step(model, images, samples) -> dict:
    """One training step; returns the losses."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    losses = model(images, samples, mode='loss')
    model.parse_losses(losses)[0].backward()
    optimizer.step()
    return losses


def check_step(model, images, samples, names) -> None:
    before = copy.deepcopy(model.state_dict())
    teacher = copy.deepcopy(model.teacher.model.state_dict())
    losses = step(model, images, samples)
    assert {n for n in losses if n.startswith('distill')} == names
    assert all(torch.isfinite(losses[name]) for name in names)
    moved = {
        key
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    projectors = {
        name
        for name, _ in model.named_parameters()
        if name.startswith('distiller.')
    }
    # Where all weights are equal, the router has no gradient yet.
    projectors = {name for name in projectors if not name.endswith('.routes')}
    assert projectors and projectors <= moved
    assert any('architecture.backbone' in key for key in moved)
    assert not any('teacher' in key for key in before)
    for key, value in model.teacher.model.state_dict().items():
        assert torch.equal(value, teacher[key])
    assert all(p.grad is None for p in model.teacher.parameters())


@pytest.mark.parametrize('teacher', ['vit', 'swin', 'beit'])
def test_a_transformer_teaches_a_cnn(tiny, teacher):
    model = build(tiny, teacher, 'resnet', forward(tiny))
    names = {'distill.loss_pca', 'distill.loss_glp'}
    check_step(model, *tiny.batch(), names)


@pytest.mark.parametrize('student', ['vit', 'swin', 'beit'])
def test_a_cnn_teaches_a_transformer(tiny, student):
    model = build(tiny, 'resnet', student, inverse(tiny))
    names = {'distill.loss_ipca', 'distill.loss_igl', 'distill.loss_router'}
    check_step(model, *tiny.batch(), names)


@pytest.mark.parametrize('size', [(64, 128), (128, 96)])
@pytest.mark.parametrize('teacher', ['vit', 'swin'])
def test_images_of_other_sizes(tiny, teacher, size):
    model = build(tiny, teacher, 'resnet', forward(tiny), input_size=size)
    names = {'distill.loss_pca', 'distill.loss_glp'}
    check_step(model, *tiny.batch(pixels=size), names)


def test_windows_of_a_block_in_the_middle(tiny):
    distiller = forward(tiny, stage=1)
    distiller['teacher_recorders']['qkv'] = dict(type='mmcakd.QKV', block=3)
    model = build(tiny, 'swin', 'resnet', distiller, input_size=(96, 128))
    seen = []
    model.distiller.connectors['pca'].register_forward_hook(
        lambda module, inputs, kwargs, out: seen.append(kwargs['qkv']),
        with_kwargs=True,
    )
    names = {'distill.loss_pca', 'distill.loss_glp'}
    check_step(model, *tiny.batch(pixels=(96, 128)), names)
    assert seen[0].grid == (6, 8)
    assert seen[0].windows.index.shape[1] == 4


def test_a_step_of_pca_by_definition(tiny):
    model = build(tiny, 'vit', 'resnet', forward(tiny)).eval()
    caught = {}
    model.teacher.model.backbone.layers[-1].attn.qkv.register_forward_hook(
        lambda m, i, o: caught.update(qkv=o[:, 1:])
    )
    model.student.backbone.layer3.register_forward_hook(
        lambda m, i, o: caught.update(map=o)
    )
    losses = model(*tiny.batch(), mode='loss')
    connector = model.distiller.connectors['pca']
    assert caught['map'].shape[2:] == (4, 4)
    tokens = connector.project(caught['map']).flatten(2).transpose(1, 2)

    def attention(qkv):
        q, k, v = (
            torch.stack(part.split(8, -1), 1) for part in qkv.split(16, -1)
        )
        prob = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1)
        return prob @ v, v @ v.transpose(2, 3) / 8**0.5

    expected = sum(
        (s - t).square().mean()
        for s, t in zip(
            attention(tokens), attention(caught['qkv']), strict=True
        )
    )
    torch.testing.assert_close(losses['distill.loss_pca'], expected)


def test_the_router_learns(tiny):
    model = build(tiny, 'resnet', 'vit', inverse(tiny))
    images, samples = tiny.batch()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        losses = model(images, samples, mode='loss')
        losses['distill.loss_router'].backward()
        optimizer.step()
    router = model.distiller.distill_losses['loss_router']
    assert router.steps == 5
    assert router.weights.max() > router.weights.min()
    assert 'distiller.distill_losses.loss_router.routes' in model.state_dict()


def test_bf16_autocast(tiny):
    for teacher, student, distiller in (
        ('swin', 'resnet', forward(tiny)),
        ('resnet', 'beit', inverse(tiny)),
    ):
        model = build(tiny, teacher, student, distiller)
        with torch.autocast('cpu', torch.bfloat16):
            losses = step(model, *tiny.batch())
        for name, loss in losses.items():
            if name.startswith('distill'):
                assert loss.dtype == torch.float32
                assert torch.isfinite(loss)


def test_the_model_can_be_copied_after_a_step(tiny):
    model = build(tiny, 'beit', 'resnet', forward(tiny))
    images, samples = tiny.batch()
    step(model, images, samples)
    clone = copy.deepcopy(model).eval()
    expected = model.eval()(images, mode='tensor')
    assert torch.equal(clone(images, mode='tensor')[0], expected[0])


@pytest.mark.parametrize('whose', ['teacher', 'student'])
def test_a_network_without_attention_is_told_before_training(tiny, whose):
    distiller = forward(tiny) if whose == 'teacher' else inverse(tiny)
    with pytest.raises(
        ValueError,
        match=f'{whose}_recorders.qkv: ResNet has no.*GLPConnector',
    ):
        build(tiny, 'resnet', 'resnet', distiller)


def test_unequal_heads_are_told_before_training(tiny):
    with pytest.raises(ValueError, match="connector 'pca'.*replace_prob=0"):
        build(tiny, 'vit', 'resnet', forward(tiny, num_heads=1, head_dims=16))


def test_heads_that_do_not_divide_are_told_before_training(tiny):
    distiller = inverse(tiny)
    distiller['connectors']['ipca']['head_dims'] = 5
    with pytest.raises(ValueError, match="connector 'ipca'.*5 channels"):
        build(tiny, 'resnet', 'vit', distiller)


def test_checkpointed_attention_of_a_student_is_told(tiny):
    student = tiny.classifier(tiny.swin(with_cp=True))
    with pytest.raises(ValueError, match='with_cp'):
        tiny.build_distillation(
            architecture=student,
            teacher=KINDS['resnet'](tiny),
            distiller=inverse(tiny),
        )
