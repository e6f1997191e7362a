"""The teacher gets its own normalisation, whatever made the batch."""

import itertools

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose, ConcatDataset, RepeatDataset
from mmengine.registry import DefaultScope
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample

from mmcakd.models.teachers import Teacher, build_teacher
from mmcakd.models.teachers.normalisation import (
    RAW,
    find_own_normalisation,
    measure_processor,
    read_dataset,
    read_normalisation,
    read_pipeline,
)

WARM = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 55.0, 50.0])
COLD = dict(mean=[90.0, 115.0, 130.0], std=[70.0, 65.0, 75.0])


def steps(*pipeline: dict) -> list:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return [TRANSFORMS.build(dict(step)) for step in pipeline]


def unit(values: dict) -> dict:
    return {key: [v / 255 for v in vs] for key, vs in values.items()}


#: What a pipeline may do before PackInputs.
PIPELINES = dict(
    nothing=[],
    mmcv=[dict(type='Normalize', **WARM, to_rgb=True)],
    mmcv_bgr=[dict(type='Normalize', **WARM, to_rgb=False)],
    pil=[
        dict(type='NumpyToPIL', to_rgb=True),
        dict(type='torchvision/RandomHorizontalFlip', p=0.0),
        dict(type='PILToNumpy', to_bgr=True),
    ],
    rgb=[
        dict(type='NumpyToPIL', to_rgb=True),
        dict(type='PILToNumpy', to_bgr=False),
    ],
    torchvision=[
        dict(type='NumpyToPIL', to_rgb=True),
        dict(type='torchvision/ToTensor'),
        dict(type='torchvision/Normalize', **unit(WARM)),
    ],
    unit_range=[dict(type='torchvision/ToTensor')],
    dtype=[
        dict(type='NumpyToPIL', to_rgb=False),
        dict(type='torchvision/PILToTensor'),
        dict(type='torchvision/ConvertImageDtype', dtype='float32'),
        dict(type='torchvision/Normalize', **unit(COLD)),
    ],
)


@pytest.fixture
def make(tiny):
    """Make a teacher with this preprocessor."""

    def make_teacher(preprocessor: dict | None, **kwargs) -> Teacher:
        model = tiny.build(
            tiny.classifier(tiny.resnet(), data_preprocessor=preprocessor)
        )
        return Teacher(model, **kwargs)

    return make_teacher


@pytest.fixture
def raw() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 24, 3), np.uint8)


@pytest.mark.parametrize('teacher_rgb', [True, False])
@pytest.mark.parametrize('student_rgb', [True, False])
@pytest.mark.parametrize('student', ['raw', 'normalises'])
@pytest.mark.parametrize('pipeline', PIPELINES)
def test_teacher_sees_what_its_preprocessor_makes_of_the_raw_image(
    make, raw, pipeline, student, student_rgb, teacher_rgb
):
    teacher = make(dict(COLD, to_rgb=teacher_rgb))
    own = teacher.model.data_preprocessor
    expected = own(dict(inputs=torch.from_numpy(raw).permute(2, 0, 1)[None]))[
        'inputs'
    ]
    preprocessor = ClsDataPreprocessor(
        **(WARM if student == 'normalises' else {}), to_rgb=student_rgb
    )
    transforms = steps(*PIPELINES[pipeline], dict(type='PackInputs'))
    teacher.adapt_to(preprocessor, read_pipeline(transforms))

    packed = Compose(transforms)(dict(img=raw.copy()))
    batch = preprocessor(dict(inputs=packed['inputs'][None]))['inputs']
    assert torch.allclose(teacher.adapt(batch), expected, atol=1e-4)


@pytest.mark.parametrize('to_rgb', [True, False])
@pytest.mark.parametrize('pipeline', PIPELINES)
def test_config_of_a_teacher_says_in_its_pipeline_how_it_is_normalised(
    tiny, raw, pipeline, to_rgb, tmp_path
):
    transforms = [*PIPELINES[pipeline], dict(type='PackInputs')]
    path = tmp_path / 'teacher.py'
    dataset = dict(type='CustomDataset', pipeline=transforms)
    Config(
        dict(
            default_scope='mmpretrain',
            model=tiny.classifier(tiny.resnet()),
            data_preprocessor=dict(num_classes=5, to_rgb=to_rgb),
            val_dataloader=dict(dataset=dict(type='X', dataset=dataset)),
        )
    ).dump(path)
    model, _ = build_teacher(str(path), 'random')
    packed = Compose(steps(*transforms))(dict(img=raw.copy()))
    expected = ClsDataPreprocessor(to_rgb=to_rgb)(
        dict(inputs=packed['inputs'][None])
    )['inputs']
    images = torch.from_numpy(raw).permute(2, 0, 1)[None]
    seen = model.data_preprocessor(dict(inputs=images))['inputs']
    assert torch.allclose(seen, expected, atol=1e-4)


class Images(BaseDataset):
    def load_data_list(self) -> list:
        return [dict(sample_idx=0)]


class CIFAR10(Images):
    """Stands for MMPretrain's, which loads RGB images."""


def images(name='mmcv', kind=Images) -> BaseDataset:
    return kind(pipeline=steps(*PIPELINES[name]), serialize_data=False)


class Stand:
    """Stands for a data set and hands on what it has."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __getattr__(self, name):
        return getattr(self.dataset, name)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda d: d,
        Stand,
        lambda d: RepeatDataset(d, 2),
        lambda d: ConcatDataset([d, images()]),
        lambda d: torch.utils.data.Subset(d, [0]),
    ],
    ids=['plain', 'stand', 'repeated', 'joined', 'part'],
)
def test_pipeline_is_found_inside_wrappers(wrap):
    found, loads_rgb = read_dataset(wrap(images()))
    assert found.mean.flatten().tolist() == WARM['mean']
    assert found.std.flatten().tolist() == WARM['std']
    assert found.flips
    assert not loads_rgb


def test_data_sets_that_are_normalised_differently_are_refused():
    with pytest.raises(ValueError, match='alike.*data_preprocessor'):
        read_dataset(ConcatDataset([images(), images('nothing')]))


@pytest.mark.parametrize('kind', ['RandomApply', 'RandomChoice'])
def test_normalising_some_images_only_is_refused(kind):
    normalise = dict(type='Normalize', **WARM)
    inner = [normalise] if kind == 'RandomApply' else [[normalise], []]
    (transform,) = steps(dict(type=kind, transforms=inner))
    with pytest.raises(ValueError, match=f'{kind}.*data_preprocessor'):
        read_pipeline([transform])
    flip = dict(type='RandomFlip', prob=0.5)
    inner = [flip] if kind == 'RandomApply' else [[flip], []]
    assert not read_pipeline(steps(dict(type=kind, transforms=inner))).flips


VIEW = 'mmcakd.AnotherView'


@pytest.mark.parametrize(
    ('before', 'inside'),
    [
        *itertools.product(['nothing', 'rgb'], PIPELINES),
        ('mmcv', 'nothing'),
        ('mmcv', 'mmcv_bgr'),
    ],
)
@pytest.mark.parametrize('behind', ['nothing', 'mmcv_bgr'])
def test_another_view_is_normalised_by_what_it_went_through(
    raw, before, inside, behind
):
    view = dict(type=VIEW, name='view1', transforms=PIPELINES[inside])
    transforms = steps(
        *PIPELINES[before],
        view,
        *PIPELINES[behind],
        dict(type='mmcakd.PackNamedInputs', names=['view1']),
    )
    packed = Compose(transforms)(dict(img=raw.copy()))['inputs']
    image = torch.from_numpy(raw).permute(2, 0, 1)[None].float()
    for name, value in packed.items():
        found = read_pipeline(transforms, name)
        assert torch.allclose(found(image)[0], value.float(), atol=1e-4)


def test_what_is_loaded_beside_the_image_is_as_it_was():
    turn = [
        dict(type='NumpyToPIL', to_rgb=True),
        dict(type='PILToNumpy', to_bgr=False),
    ]
    shared = dict(
        type='mmcakd.SharedTransforms', transforms=turn, names=['other']
    )
    transforms = steps(dict(type='Normalize', **WARM, to_rgb=False), shared)
    assert read_pipeline(transforms, 'depth') is RAW
    other = read_pipeline(transforms, 'other')
    assert other.flips and other.mean.item() == 0
    image = read_pipeline(transforms)
    assert image.flips
    assert image.mean.flatten().tolist() == WARM['mean'][::-1]


def test_steps_of_wrappers_follow_those_of_the_data_set():
    dataset = images('mmcv')
    wrapper = Stand(dataset)
    wrapper.pipeline = steps(dict(type=VIEW, name='view1', transforms=[]))
    found, _ = read_dataset(wrapper, 'view1')
    assert found.mean.flatten().tolist() == WARM['mean'] and found.flips
    assert read_dataset(dataset, 'view1')[0] is RAW


# ---------------------------------------------------- what a network wants


@pytest.mark.parametrize('loads_rgb', [False, True])
@pytest.mark.parametrize(
    'name, mean',
    [('vit_tiny_patch16_224', 0.5), ('mobilenetv3_small_050', 0.485)],
)
def test_timm_says_how_its_networks_are_normalised(name, mean, loads_rgb):
    from mmpretrain.models import TimmClassifier

    model = TimmClassifier(model_name=name, num_classes=3)
    own = find_own_normalisation(model, loads_rgb)
    says = model.model.default_cfg
    assert says['mean'][0] == mean
    image = torch.randint(256, (1, 3, 8, 8)).float()
    rgb = image if loads_rgb else image.flip(1)
    mean, std = (
        torch.tensor(says[key]).view(3, 1, 1) for key in ('mean', 'std')
    )
    expected = (rgb / 255 - mean) / std
    assert torch.allclose(own(image), expected, atol=1e-5)


def test_torchvision_says_how_its_networks_are_normalised(tiny):
    cfg = dict(type='mmcakd.TorchvisionClassifier', model_name='resnet18')
    own = find_own_normalisation(tiny.build(cfg))
    expected = [0.485 * 255, 0.456 * 255, 0.406 * 255]
    assert own.mean.flatten().tolist() == pytest.approx(expected)
    assert own.flips


def test_preprocessor_comes_before_what_a_package_says():
    from mmpretrain.models import TimmClassifier

    model = TimmClassifier(
        model_name='vit_tiny_patch16_224',
        num_classes=3,
        data_preprocessor=dict(WARM),
    )
    own = find_own_normalisation(model)
    assert own.mean.flatten().tolist() == WARM['mean']
    assert not own.flips


def test_network_that_says_nothing_takes_batches_as_they_are(make):
    teacher = make(None)
    teacher.adapt_to(ClsDataPreprocessor(**WARM, to_rgb=True))
    batch = torch.randn(2, 3, 32, 32)
    assert teacher.adapt(batch) is batch


@pytest.mark.parametrize('normalises', [True, False])
@pytest.mark.parametrize('rescales', [True, False])
def test_image_processors_are_measured(rescales, normalises):
    """Stands for Hugging Face's: centre crop, rescale, normalise."""
    mean, std = np.array([0.2, 0.5, 0.6]), np.array([0.3, 0.25, 0.5])

    class Processor:
        size = dict(height=8, width=8)

        def __call__(self, image, return_tensors):
            pixels = image[4:12, 4:12].astype(np.float64)
            if rescales:
                pixels = pixels / 255
            if normalises:
                pixels = (pixels - mean) / std
            pixels = torch.from_numpy(pixels).permute(2, 0, 1)
            return dict(pixel_values=pixels[None])

    own = measure_processor(Processor())
    rgb = torch.randint(256, (1, 3, 4, 4)).float()
    expected = rgb / 255 if rescales else rgb
    if normalises:
        m, s = (torch.from_numpy(v).float().view(3, 1, 1) for v in (mean, std))
        expected = (expected - m) / s
    assert torch.allclose(own(rgb.flip(1)), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def hugging_face(tmp_path):
    """A tiny ViT of Hugging Face with weights, perhaps with a processor."""
    transformers = pytest.importorskip(
        'transformers', reason='transformers is not installed'
    )
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=32,
        patch_size=16,
        num_labels=5,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)

    def make(processor: bool = True) -> dict:
        if processor:
            transformers.ViTImageProcessor(
                size=dict(height=32, width=32),
                image_mean=[0.1, 0.2, 0.3],
                image_std=[0.5, 0.6, 0.7],
            ).save_pretrained(tmp_path)
        return dict(
            type='mmpretrain.HuggingFaceClassifier',
            model_name=str(tmp_path),
            pretrained=True,
        )

    return make


def test_hugging_face_says_how_its_networks_are_normalised(hugging_face, tiny):
    model = tiny.build_distillation(
        teacher=hugging_face(),
        teacher_ckpt=None,
        distiller=tiny.logit_kd(),
        input_size=32,
        data_preprocessor=WARM | dict(to_rgb=False),
    )
    model.init_weights()
    raw = torch.randint(256, (2, 3, 32, 32))
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    )
    batch = model.data_preprocessor(dict(inputs=raw))['inputs']
    expected = (raw.flip(1) / 255 - mean) / std
    assert torch.allclose(model.teacher.adapt(batch), expected, atol=1e-4)


def test_without_an_image_processor_training_does_not_start(
    hugging_face, tiny
):
    def build(**kwargs):
        cfg = dict(
            teacher=hugging_face(processor=False),
            teacher_ckpt=None,
            distiller=tiny.logit_kd(),
            input_size=32,
        )
        return tiny.build_distillation(**cfg | kwargs)

    with pytest.raises(ValueError, match='image processor.*data_preproc'):
        build().init_weights()
    cured = hugging_face(processor=False) | dict(data_preprocessor=WARM)
    build(teacher=cured).init_weights()
    build(teacher_ckpt='random').init_weights()


# ------------------------------------------------------- channels, padding


@pytest.mark.parametrize('own', ['rgb', 'grey', 'none'])
def test_one_channel_images_reach_a_teacher_of_three(make, own):
    preprocessor = ClsDataPreprocessor(mean=[100.0], std=[50.0])
    theirs = dict(
        rgb=dict(COLD, to_rgb=True),
        grey=dict(mean=[100.0], std=[50.0]),
        none=None,
    )[own]
    teacher = make(theirs)
    teacher.adapt_to(preprocessor)
    raw = torch.randint(256, (2, 1, 64, 64))
    batch = preprocessor(dict(inputs=raw))['inputs']
    seen = teacher.adapt(batch)
    assert seen.shape == (2, 3, 64, 64)
    mean, std = ([100.0], [50.0]) if own != 'rgb' else COLD.values()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
    assert torch.allclose(seen, (raw - mean) / std + seen * 0, atol=1e-4)
    assert teacher(batch).shape == (2, 5)


def test_distillation_of_a_one_channel_student_runs(tiny):
    student = tiny.classifier(tiny.resnet(in_channels=1))
    model = tiny.build_distillation(
        architecture=student, distiller=tiny.logit_kd()
    )
    losses = model(torch.randn(2, 1, 64, 64), tiny.batch()[1], mode='loss')
    assert all(loss.isfinite() for loss in losses.values())


def test_teacher_of_other_channels_is_named(tiny):
    with pytest.raises(ValueError, match='teacher.*3 channels.*channels'):
        tiny.build_distillation(
            teacher=tiny.classifier(tiny.resnet(in_channels=4)),
            distiller=tiny.logit_kd(),
        )


@pytest.mark.parametrize('own_pad, student_pad', [(0, 0), (3, 0), (0.5, -2)])
@pytest.mark.parametrize('alike', [True, False])
@pytest.mark.parametrize('rgb', [True, False])
def test_padding_is_that_of_the_teachers_own_preprocessor(
    make, own_pad, student_pad, alike, rgb
):
    theirs = dict(WARM if alike else COLD, to_rgb=rgb, pad_value=own_pad)
    teacher = make(theirs | dict(pad_size_divisor=8))
    preprocessor = ClsDataPreprocessor(
        **WARM, to_rgb=True, pad_value=student_pad, pad_size_divisor=8
    )
    teacher.adapt_to(preprocessor)
    teacher.watch(preprocessor)
    raw = [torch.randint(256, (3, *size)) for size in ((60, 40), (33, 64))]
    data = dict(inputs=raw, data_samples=[DataSample(), DataSample()])
    own = teacher.model.data_preprocessor(dict(inputs=raw))['inputs']
    batch = preprocessor(data)
    seen = []
    teacher.model.backbone.register_forward_pre_hook(
        lambda m, i: seen.append(i[0])
    )
    before = batch['inputs'].clone()
    teacher(**batch)
    assert torch.allclose(seen[0], own, atol=1e-4)
    # The student's own batch is left alone.
    assert torch.equal(batch['inputs'], before)


def test_padding_by_a_divisor_is_known_too(make):
    teacher = make(dict(COLD, pad_value=1, pad_size_divisor=32))
    preprocessor = ClsDataPreprocessor(**WARM, pad_size_divisor=32)
    teacher.adapt_to(preprocessor)
    teacher.watch(preprocessor)
    raw = torch.randint(256, (2, 3, 50, 64))
    batch = preprocessor(
        dict(inputs=raw, data_samples=[DataSample(), DataSample()])
    )
    own = teacher.model.data_preprocessor(dict(inputs=raw))['inputs']
    seen = []
    teacher.model.backbone.register_forward_pre_hook(
        lambda m, i: seen.append(i[0])
    )
    teacher(**batch)
    assert torch.allclose(seen[0], own, atol=1e-4)


def test_padding_that_is_mixed_is_refused(make):
    teacher = make(dict(COLD))
    augments = dict(augments=dict(type='Mixup', alpha=1.0))
    preprocessor = ClsDataPreprocessor(
        **WARM, num_classes=5, batch_augments=augments
    )
    teacher.adapt_to(preprocessor)
    teacher.watch(preprocessor)

    def data(*sizes):
        return dict(
            inputs=[torch.randint(256, (3, *size)) for size in sizes],
            data_samples=[DataSample().set_gt_label(i) for i in (0, 1)],
        )

    preprocessor(data((64, 64), (64, 64)), training=True)
    preprocessor(data((64, 32), (64, 64)), training=False)
    with pytest.raises(ValueError, match='padded and then mixed'):
        preprocessor(data((64, 32), (64, 64)), training=True)


# ------------------------------------------------------------ the first batch

NORMALISED = torch.linspace(-2.1, 2.6, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
FIRST = {
    'normalised': (NORMALISED, {}, True),
    'from 0 to 1': (torch.rand(2, 3, 64, 64), {}, True),
    'a list': (list(NORMALISED), {}, True),
    'normalised twice': (NORMALISED, WARM, True),
    'pixels': (torch.randint(256, (2, 3, 64, 64)).float(), {}, False),
    'bytes': (torch.ones(2, 3, 64, 64, dtype=torch.uint8), {}, False),
    'black': (torch.zeros(2, 3, 64, 64), {}, False),
}


@pytest.mark.parametrize('first', FIRST)
@pytest.mark.parametrize('positional', [True, False])
def test_batch_that_was_normalised_before_is_refused(make, first, positional):
    images, student, is_refused = FIRST[first]
    teacher = make(dict(COLD))
    preprocessor = ClsDataPreprocessor(**student)
    teacher.adapt_to(preprocessor)
    teacher.watch(preprocessor)
    data = dict(inputs=images)
    # Nothing is said of what is only tested.
    preprocessor(data, False)
    args, kwargs = ([True], {}) if positional else ([], dict(training=True))
    if is_refused:
        with pytest.raises(ValueError) as caught:
            preprocessor(data, *args, **kwargs)
        for named in ('data_preprocessor', 'TrainingSetHook', '[90.0, 115'):
            assert named in str(caught.value)
    else:
        preprocessor(data, *args, **kwargs)


@pytest.mark.parametrize('own', [None, COLD])
def test_batch_is_fine_where_the_pipeline_is_known_or_nobody_asks(make, own):
    teacher = make(own and dict(own))
    preprocessor = ClsDataPreprocessor()
    pipeline = read_pipeline(steps(dict(type='Normalize', **WARM)))
    teacher.adapt_to(preprocessor, *([pipeline] if own else []))
    teacher.watch(preprocessor)
    preprocessor(dict(inputs=NORMALISED), True)


def test_joined_normalisations_are_one_after_the_other():
    image = torch.rand(1, 3, 4, 4) * 255
    makers = [
        dict(WARM, to_rgb=True),
        dict(COLD, to_rgb=True),
        dict(COLD),
        dict(to_rgb=True),
    ]
    for first, second in itertools.product(makers, makers):
        one, two = (
            read_normalisation(ClsDataPreprocessor(**cfg))
            for cfg in (first, second)
        )
        expected = two(one(image))
        assert torch.allclose(one.then(two)(image), expected, atol=1e-3)
        scale, shift, flips = one.turn_into(two)
        batch = one(image).flip(1) if flips else one(image)
        assert torch.allclose(batch * scale + shift, two(image), atol=1e-3)
