"""Students and teachers that are no classifiers: detectors, segmentors."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor, BaseModel, ImgDataPreprocessor
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, PixelData
from mmpretrain.models import ClsDataPreprocessor
from torch import nn
from torch.testing import assert_close

from mmcakd.models.teachers import Teacher
from mmcakd.models.teachers.build import build_model
from mmcakd.utils import export_student, student_config

MEAN, STD = [123.7, 116.3, 103.5], [58.4, 57.1, 57.4]


class TinySegmentor(BaseModel):
    """A backbone of MMPretrain with class scores for every place."""

    def __init__(
        self,
        backbone: dict,
        width: int,
        classes: int = 3,
        data_preprocessor=None,
    ) -> None:
        super().__init__(data_preprocessor)
        self.backbone = MODELS.build(backbone)
        self.neck = nn.Conv2d(width, 8, 1)
        self.conv_seg = nn.Conv2d(8, classes, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.conv_seg(self.neck(self.backbone(inputs)[-1]))
        if mode == 'tensor':
            return logits
        if mode == 'predict':
            for sample, scores in zip(data_samples, logits, strict=True):
                sample.pred_sem_seg = PixelData(data=scores.argmax(0)[None])
            return data_samples
        target = torch.stack([s.gt_sem_seg.data[0] for s in data_samples])
        logits = F.interpolate(logits, target.shape[1:], mode='bilinear')
        return dict(loss_seg=F.cross_entropy(logits, target))


class TinyDetector(TinySegmentor):
    """Two stages: what is proposed depends on the sizes of the images."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        levels = [self.neck(self.backbone(inputs)[-1])]
        levels.append(F.max_pool2d(levels[0], 2, ceil_mode=True))
        scores = [self.conv_seg(level) for level in levels]
        centres = [
            scores[0].new_tensor(sample.img_shape) / 2
            for sample in data_samples
        ]
        if mode == 'tensor':
            return scores, torch.stack(centres)[None]
        return dict(loss_box=sum(s.square().mean() for s in scores))


@pytest.fixture(autouse=True)
def registered():
    for cls in (TinySegmentor, TinyDetector):
        MODELS.register_module(module=cls, force=True)
    yield
    for cls in (TinySegmentor, TinyDetector):
        MODELS.module_dict.pop(cls.__name__)


def dense(
    backbone: dict, width: int, kind: str = 'Segmentor', **kwargs
) -> dict:
    backbone = backbone | dict(type=f'mmpretrain.{backbone["type"]}')
    return dict(type=f'Tiny{kind}', backbone=backbone, width=width) | kwargs


@pytest.fixture
def build(tiny):
    """Build a distillation from a Swin to a ResNet, both dense."""

    def build_dense(distiller: dict, kind: str = 'Segmentor', **kwargs):
        models = dict(
            architecture=dense(tiny.resnet(), 32, kind),
            teacher=dense(tiny.swin(), 64, kind),
            input_size=64,
        )
        return tiny.build_distillation(
            distiller=distiller,
            **models | dict(student_loss_weight=1.0) | kwargs,
        )

    return build_dense


def module(name: str) -> dict:
    return dict(type='ModuleOutputs', source=name)


def compare(source: str, loss: str = 'mmcakd.MSELoss', **kwargs) -> dict:
    """Let a module's output learn from that of the teacher's."""
    ours = loss.startswith('mmcakd.')
    names = ('student', 'teacher') if ours else ('preds_S', 'preds_T')
    return dict(
        student_recorders=dict(out=module(source)),
        teacher_recorders=dict(out=module(source)),
        distill_losses=dict(loss_out=dict(type=loss)),
        loss_forward_mappings=dict(
            loss_out={
                name: dict(recorder='out', from_student=whose) | kwargs
                for name, whose in zip(names, (True, False), strict=True)
            }
        ),
    )


def batch(size: tuple[int, int] = (64, 64), count: int = 2):
    samples = []
    for _ in range(count):
        sample = BaseDataElement(metainfo=dict(img_shape=size))
        sample.gt_sem_seg = PixelData(data=torch.randint(3, (1, *size)))
        samples.append(sample)
    return torch.randn(count, 3, *size), samples


# ------------------------------------------------------------------- a step


@pytest.mark.parametrize('loss', ['mmcakd.MSELoss', 'ChannelWiseDivergence'])
def test_segmentor_learns_from_the_logits_of_another(build, loss):
    model = build(compare('conv_seg', loss)).eval()
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    student = model.student(images)
    teacher = model.teacher(images)
    if loss == 'mmcakd.MSELoss':
        expected = (student - teacher).square().mean()
    else:
        p = teacher.flatten(2).softmax(2)
        q = student.flatten(2).log_softmax(2)
        expected = (p * (p.log() - q)).sum() / (2 * 3)
    assert_close(losses['distill.loss_out'], expected)
    alone = model.student(images, samples, mode='loss')
    assert_close(losses['student.loss_seg'], alone['loss_seg'])


def test_teacher_of_a_segmentor_is_frozen_and_kept_out(build):
    model = build(compare('neck')).train()
    calls = []
    model.teacher.model.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output)),
        with_kwargs=True,
    )
    losses = model(*batch(), mode='loss')
    losses['distill.loss_out'].backward()
    ((kwargs, output),) = calls
    assert kwargs == dict(mode='tensor')
    assert not output.requires_grad
    assert not model.teacher.model.training
    assert all(
        not p.requires_grad and p.grad is None
        for p in model.teacher.parameters()
    )
    assert not [key for key in model.state_dict() if 'teacher' in key]
    assert model.student.backbone.conv1.weight.grad.any()
    assert model.student.neck.weight.grad.any()
    assert model.student.conv_seg.weight.grad is None


def test_prediction_is_that_of_the_student(build):
    model = build(compare('conv_seg')).eval()
    images, samples = batch()
    predicted = model(images, samples, mode='predict')
    expected = model.student(images).argmax(1)
    for sample, labels in zip(predicted, expected, strict=True):
        assert torch.equal(sample.pred_sem_seg.data[0], labels)


def test_distilling_brings_the_student_nearer_to_the_teacher(build):
    model = build(compare('conv_seg'), calculate_student_loss=False)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    images, samples = batch()
    data = dict(inputs=images, data_samples=samples)
    log = [
        model.train_step(data, wrapper)['distill.loss_out'].item()
        for _ in range(4)
    ]
    assert log == sorted(log, reverse=True)


# ------------------------------------------------------- reading the models


def projecting(connector: str, like: dict, loss: str = 'mmcakd.MSELoss'):
    stages = dict(stages=dict(type='mmcakd.StageOutputs'))
    return dict(
        student_recorders=stages,
        teacher_recorders=stages,
        connectors=dict(
            project=dict(
                type=connector,
                inputs=dict(
                    feature=dict(
                        recorder='stages', from_student=True, data_idx=2
                    )
                ),
                shape_like=like,
            )
        ),
        distill_losses=dict(loss_stage=dict(type=loss)),
        loss_forward_mappings=dict(
            loss_stage=dict(student=dict(connector='project'), teacher=like)
        ),
    )


STAGE_4 = dict(recorder='stages', from_student=False, data_idx=3)


@pytest.mark.parametrize('kind', ['Segmentor', 'Detector'])
@pytest.mark.parametrize('size', [64, (64, 96)])
@pytest.mark.parametrize(
    'connector', ['mmcakd.FitNetConnector', 'mmcakd.GLPConnector']
)
def test_connectors_read_widths_and_grids_of_dense_models(
    build, connector, size, kind
):
    model = build(projecting(connector, STAGE_4), kind, input_size=size)
    project = model.distiller.connectors.project
    height, width = (size, size) if isinstance(size, int) else size
    assert project.in_channels == 16
    assert project.out_channels == 64
    assert project.grid == (height // 32, width // 32)
    losses = model.train()(*batch((height, width)), mode='loss')
    losses['distill.loss_stage'].backward()
    assert model.student.backbone.conv1.weight.grad.any()
    assert all(p.grad.any() for p in project.parameters())


def test_detector_that_needs_the_sizes_of_images_is_read(build):
    """As those of two stages do, even without a loss."""
    model = build(compare('neck'), 'Detector')
    losses = model(*batch(), mode='loss')
    assert set(losses) == {'student.loss_box', 'distill.loss_out'}
    with pytest.raises(TypeError):
        model.student(torch.zeros(2, 3, 64, 64), None, mode='tensor')


def test_student_is_in_its_mode_again_after_it_was_read(build):
    model = build(projecting('mmcakd.FitNetConnector', STAGE_4))
    assert all(m.training for m in model.student.modules())
    assert not model.student.backbone.bn1.num_batches_tracked


# --------------------------------------------------------------------- errors


def test_shapes_that_differ_are_an_error_of_the_build(build, tiny):
    with pytest.raises(ValueError) as caught:
        build(compare('conv_seg'), teacher=dense(tiny.swin(), 64, classes=4))
    for part in ("'loss_out'", '(2, 3, 2, 2)', '(2, 4, 2, 2)'):
        assert part in str(caught.value)


def test_grids_that_differ_are_named_by_the_first_step(build, tiny):
    """A loss of MMRazor is not tried on an example, and says nothing."""
    backbone = tiny.swin(patch_size=2)
    model = build(
        compare('conv_seg', 'ChannelWiseDivergence'),
        teacher=dense(backbone, 64),
    )
    with pytest.raises(ValueError) as caught:
        model(*batch(), mode='loss')
    for part in ("'loss_out'", 'preds_S (2, 3, 2, 2)', 'preds_T (2, 3, 4, 4)'):
        assert part in str(caught.value)


def test_labels_of_images_are_missing_in_dense_models(build):
    distiller = compare('conv_seg')
    distiller['distill_losses']['loss_ce'] = dict(type='mmcakd.DKDLoss')
    distiller['loss_forward_mappings']['loss_ce'] = dict(
        **{
            whose: dict(recorder='out', from_student=whose == 'student')
            for whose in ('student', 'teacher')
        },
        label=dict(label='hard'),
    )
    with pytest.raises(RuntimeError, match='hard labels.*have no gt_label'):
        build(distiller)


def test_places_in_the_data_set_may_be_read_in_dense_models(
    build, monkeypatch
):
    seen = []

    class Probe(nn.Module):
        def forward(self, student, index):
            seen.append(index)
            return student.mean()

    monkeypatch.setattr(Probe, '__module__', 'mmcakd.probe')
    distiller = compare('conv_seg')
    distiller['distill_losses']['loss_probe'] = dict(type=Probe)
    distiller['loss_forward_mappings']['loss_probe'] = dict(
        student=dict(recorder='out', from_student=True),
        index=dict(label='index'),
    )
    build(distiller)
    assert seen[0].tolist() == [0, 1]


def test_without_an_input_size_names_are_checked_all_the_same(build, tiny):
    kwargs = dict(input_size=None, teacher=dense(tiny.resnet(), 32))
    build(compare('conv_seg'), **kwargs)
    with pytest.raises(ValueError, match=r"'conv_sag'.*'conv_seg'"):
        build(compare('conv_sag'), **kwargs)
    with pytest.raises(ValueError, match='set model.input_size'):
        build(projecting('mmcakd.FitNetConnector', STAGE_4), **kwargs)


def test_augmentations_of_a_batch_are_not_dropped_in_silence(build, tiny):
    class Resizing(ImgDataPreprocessor):
        def __init__(self, batch_augments=None, **kwargs):
            super().__init__(**kwargs)
            self.batch_augments = batch_augments

    with_augments = dict(type=Resizing, batch_augments=['resize'])
    student = dense(tiny.resnet(), 32, data_preprocessor=with_augments)
    kwargs = dict(distiller=compare('conv_seg'), architecture=student)
    with pytest.raises(ValueError, match='Resizing would replace'):
        build(**kwargs, data_preprocessor=dict(type=Resizing))
    model = build(**kwargs, data_preprocessor=dict(with_augments))
    assert model.data_preprocessor.batch_augments == ['resize']


# -------------------------------------------------------------- preprocessing


class StackingPreprocessor(BaseDataPreprocessor):
    """One that names its switch as MMSegmentation's does."""

    def __init__(self, mean, std, bgr_to_rgb=False) -> None:
        super().__init__()
        self._enable_normalize = True
        self.channel_conversion = bgr_to_rgb
        for name, values in dict(mean=mean, std=std).items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, data, training=False):
        images = torch.stack([image.float() for image in data['inputs']])
        if self.channel_conversion:
            images = images.flip(1)
        return dict(inputs=(images - self.mean) / self.std)


@pytest.mark.parametrize('teacher_rgb', [True, False])
@pytest.mark.parametrize('student_rgb', [True, False])
def test_order_of_channels_is_understood_in_all_packages(
    tiny, student_rgb, teacher_rgb
):
    cfg = tiny.classifier(tiny.swin())
    own = ClsDataPreprocessor(MEAN[::-1], STD, to_rgb=teacher_rgb)
    other = StackingPreprocessor(MEAN, STD, bgr_to_rgb=student_rgb)
    raw = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    for mine, its in ((own, other), (other, own)):
        model = tiny.build(cfg)
        model.data_preprocessor = mine
        teacher = Teacher(model)
        teacher.adapt_to(its)
        expected = mine(dict(inputs=raw))['inputs']
        adapted = teacher.adapt(its(dict(inputs=raw))['inputs'])
        assert_close(adapted, expected, atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------- export


def of_a_run(tiny, tmp_path):
    """What a Runner saves of a distillation between dense models."""
    cfg = Config(
        dict(
            default_scope='mmengine',
            custom_imports=dict(imports=['mmcakd']),
            data_preprocessor=dict(
                type='ImgDataPreprocessor', mean=MEAN, std=STD
            ),
            model=dict(
                type='mmcakd.CrossArchDistill',
                architecture=dense(tiny.resnet(), 32),
                teacher=dense(tiny.swin(), 64),
                distiller=compare('conv_seg'),
                input_size=64,
            ),
            default_hooks=dict(export=dict(type='mmcakd.ExportStudentHook')),
            test_cfg=dict(),
        )
    )
    model = tiny.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor)
    )
    path = tmp_path / 'iter_2.pth'
    meta = dict(cfg=cfg.pretty_text, iter=2)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return model, path


def test_exported_segmentor_is_a_plain_one(tiny, tmp_path):
    model, path = of_a_run(tiny, tmp_path)
    out = export_student(path)
    cfg = Config.fromfile(out.with_suffix('.py'))
    assert cfg.default_scope == 'mmengine'
    # Their tools build the model alone.
    assert cfg.model.data_preprocessor.mean == MEAN
    assert 'data_preprocessor' not in cfg
    assert 'mmcakd' not in cfg.pretty_text
    plain = build_model(str(out.with_suffix('.py')), 'student')
    weights = torch.load(out)['state_dict']
    plain.load_state_dict(weights)
    assert not [key for key in weights if 'teacher' in key]
    images, _ = batch()
    assert torch.equal(plain.eval()(images), model.student.eval()(images))
    raw = dict(inputs=[torch.randint(256, (3, 64, 64))])
    assert torch.equal(
        plain.data_preprocessor(raw)['inputs'],
        model.data_preprocessor(raw)['inputs'],
    )


def test_export_of_an_exported_segmentor_is_the_same(tiny, tmp_path):
    _, path = of_a_run(tiny, tmp_path)
    first = export_student(path)
    second = export_student(first, tmp_path / 'again.pth')
    text = [out.with_suffix('.py').read_text() for out in (first, second)]
    assert text[0] == text[1]


@pytest.mark.parametrize(
    ('student', 'run', 'scope'),
    [
        (dict(type='mmdet.RetinaNet'), 'mmpretrain', 'mmdet'),
        (dict(type='RetinaNet'), 'mmdet', 'mmdet'),
        (dict(type='RetinaNet', _scope_='mmdet'), 'mmpretrain', 'mmdet'),
        (dict(type='mmpretrain.ImageClassifier'), 'mmdet', 'mmpretrain'),
        (dict(type='mmcakd.TorchvisionClassifier'), 'mmrazor', 'mmpretrain'),
        (dict(type='ImageClassifier'), None, 'mmpretrain'),
    ],
)
def test_exported_config_is_of_the_package_of_the_student(student, run, scope):
    model = dict(type='mmcakd.CrossArchDistill', architecture=student)
    cfg = Config(dict(default_scope=run, model=model))
    assert student_config(cfg).default_scope == scope


def test_exported_segmentor_has_the_preprocessor_of_the_run():
    given, own = (dict(type='P', mean=[m] * 3, std=[1] * 3) for m in (1, 2))
    student = dict(type='S', data_preprocessor=own)
    run = Config(
        dict(
            default_scope='mmseg',
            data_preprocessor=given,
            model=dict(type='A', architecture=student),
        )
    )
    assert student_config(run).model.data_preprocessor == given
    plain = Config(run.to_dict() | dict(model=student))
    assert student_config(plain).model.data_preprocessor == own
