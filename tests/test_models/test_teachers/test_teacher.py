"""The frozen teacher: its mode, inputs, precision and place."""

import copy

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmpretrain.models import ClsDataPreprocessor
from PIL import Image
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from mmcakd.models.recorders import StageOutputsRecorder
from mmcakd.models.teachers import Teacher

IMAGENET = dict(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])
CLIP = dict(mean=[122.8, 116.7, 104.1], std=[68.5, 66.6, 70.3])
UNIT = dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0])


@pytest.fixture
def make(tiny):
    """Make a teacher of a backbone's config."""

    def make_teacher(backbone=None, preprocessor=None, **kwargs):
        cfg = tiny.classifier(backbone or tiny.swin())
        model = tiny.build(cfg | dict(data_preprocessor=preprocessor))
        return Teacher(model, **kwargs)

    return make_teacher


# --------------------------------------------------------------------- mode


def test_stochastic_depth_is_off_whatever_the_runner_does(make, tiny):
    teacher = make(tiny.swin(drop_path_rate=0.5))
    images, _ = tiny.batch()
    teacher.train()
    teacher.model.eval()
    expected = teacher.model(images, mode='tensor')
    teacher.train(True)
    for _ in range(2):
        assert torch.equal(teacher(images), expected)


def test_train_mode_turns_stochastic_depth_on_but_not_batch_norm(make, tiny):
    images, _ = tiny.batch(4)
    swin = make(tiny.swin(drop_path_rate=0.5), mode='train')
    assert not torch.equal(swin(images), swin(images))

    resnet = make(tiny.resnet(), mode='train').train()
    before = copy.deepcopy(resnet.model.state_dict())
    first = resnet(images)
    assert torch.equal(resnet(images), first)
    assert torch.allclose(resnet(images[:1]), first[:1], atol=1e-5)
    after = resnet.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert resnet.model.backbone.training


def test_train_mode_follows_eval(make, tiny):
    teacher = make(tiny.swin(drop_path_rate=0.5), mode='train').eval()
    images, _ = tiny.batch()
    assert torch.equal(teacher(images), teacher(images))


def test_train_returns_the_teacher(make):
    teacher = make()
    assert teacher.train() is teacher
    assert teacher.eval() is teacher


def test_parameters_are_frozen(make):
    assert not any(p.requires_grad for p in make().parameters())


@pytest.mark.parametrize('kind', ['swin', 'resnet', 'vit'])
def test_nothing_is_saved_for_backward(make, tiny, kind):
    saved = []
    images, samples = tiny.batch()
    images.requires_grad_()
    teacher = make(getattr(tiny, kind)(), preprocessor=dict(IMAGENET))
    teacher.adapt_to(ClsDataPreprocessor(**CLIP, to_rgb=True))

    def keep(tensor):
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        for mode in ('tensor', 'loss'):
            teacher(images, samples, mode=mode)
        assert sum(saved) == 0
        # The counter counts.
        teacher.model(images, mode='tensor')
    assert sum(saved) > 0


@pytest.mark.parametrize(
    ('option', 'named'),
    [
        (dict(mode='frozen'), r"mode.*'eval' or 'train'.*'frozen'"),
        (dict(precision='int8'), "precision.*bf16.*'int8'"),
    ],
)
def test_unknown_options_are_refused(make, option, named):
    with pytest.raises(ValueError, match=named):
        make(**option)


# ------------------------------------------------------------ normalisation


@pytest.mark.parametrize('teacher_rgb', [True, False])
@pytest.mark.parametrize('student_rgb', [True, False])
@pytest.mark.parametrize('student', [IMAGENET, CLIP, UNIT, {}])
def test_image_reaches_the_teacher_as_through_its_own_preprocessor(
    make, student, student_rgb, teacher_rgb
):
    teacher = make(preprocessor=dict(CLIP, to_rgb=teacher_rgb))
    own = teacher.model.data_preprocessor
    # MMPretrain cannot tell which end is red without a normalisation.
    preprocessor = ClsDataPreprocessor(**student, to_rgb=student_rgb)
    teacher.adapt_to(preprocessor)
    raw = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = own(dict(inputs=raw))['inputs']
    batch = preprocessor(dict(inputs=raw))['inputs']
    assert torch.allclose(teacher.adapt(batch), expected, atol=1e-4)
    logits = teacher.model(expected, mode='tensor')
    assert torch.allclose(teacher(batch), logits, atol=1e-4)


def test_preprocessor_of_mmengine_is_understood(make):
    teacher = make(preprocessor=dict(CLIP, to_rgb=False))
    preprocessor = ImgDataPreprocessor(**IMAGENET, bgr_to_rgb=True)
    teacher.adapt_to(preprocessor)
    raw = [
        torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)
    ]
    batch = preprocessor(dict(inputs=raw))['inputs']
    own = teacher.model.data_preprocessor
    expected = own(dict(inputs=torch.stack(raw)))['inputs']
    assert torch.allclose(teacher.adapt(batch), expected, atol=1e-4)


def test_batch_is_left_alone_where_both_normalise_alike(make):
    teacher = make(preprocessor=dict(IMAGENET, to_rgb=True))
    teacher.adapt_to(ClsDataPreprocessor(**IMAGENET, to_rgb=True))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(teacher.adapt(images), images)


def test_teacher_without_normalisation_takes_batches_as_they_are(make):
    teacher = make()
    teacher.adapt_to(ClsDataPreprocessor(**IMAGENET, to_rgb=True))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(teacher.adapt(images), images)


# --------------------------------------------------------------- input size


@pytest.mark.parametrize('size', [96, (64, 96)])
def test_batch_is_resized_to_the_teachers_size(make, size):
    teacher = make(input_size=size)
    recorder = StageOutputsRecorder()
    recorder.initialize(teacher.model)
    with recorder:
        teacher(torch.randn(2, 3, 64, 64))
    height, width = (size, size) if isinstance(size, int) else size
    assert recorder.get_record_data(data_idx=0).shape[2:] == (
        height // 4,
        width // 4,
    )


def test_resizing_keeps_the_picture(make):
    # A slope stays a slope, in its place.
    slope = torch.linspace(-2, 2, 64).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    resized = make(input_size=32).adapt(slope)
    expected = slope.unflatten(3, (32, 2)).mean(4)[:, :, ::2]
    assert (resized - expected)[..., 2:-2].abs().max() < 0.01


@pytest.mark.parametrize('size', [(32, 32), (24, 40), (96, 128)])
def test_resizing_is_that_of_pillow(make, size):
    """Bicubic, over as many pixels as one of the new size covers."""
    images = torch.rand(2, 3, 64, 64)
    expected = torch.stack(
        [
            torch.from_numpy(
                np.array(
                    Image.fromarray(channel.numpy(), mode='F').resize(
                        size[::-1], Image.Resampling.BICUBIC
                    )
                )
            )
            for channel in images.flatten(0, 1)
        ]
    ).unflatten(0, (2, 3))
    resized = make(input_size=size).adapt(images)
    torch.testing.assert_close(resized, expected, atol=1e-4, rtol=0)


def test_fine_stripes_become_grey(make):
    # One column in four, which points between pixels would miss.
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::4] = 1
    resized = make(input_size=16).adapt(stripes)
    assert (resized - 0.25)[..., 2:-2].abs().max() < 0.1


def test_batch_of_the_right_size_is_not_touched(make):
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(make(input_size=64).adapt(images), images)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize('kind', ['swin', 'resnet', 'vit'])
def test_bfloat16_is_close_to_float32(make, tiny, kind):
    teacher = make(getattr(tiny, kind)())
    images, _ = tiny.batch(4)
    expected = teacher(images)
    teacher.precision = 'bf16'
    logits = teacher(images)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.05
    assert not torch.equal(logits.float(), expected)


def test_float32_teacher_stays_exact_inside_autocast(make, tiny):
    images, _ = tiny.batch()
    exact, follows = make(precision='fp32'), make()
    follows.model.load_state_dict(exact.model.state_dict())
    expected = exact(images)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(exact(images), expected)
        assert follows(images).dtype == torch.bfloat16


@pytest.mark.parametrize('own', [True, False])
@pytest.mark.parametrize('batch', [True, False])
@pytest.mark.parametrize('kind', ['resnet', 'swin'])
def test_memory_format_changes_no_value(make, tiny, kind, batch, own):
    teacher = make(
        getattr(tiny, kind)(),
        preprocessor=dict(IMAGENET, to_rgb=True),
        channels_last=own,
    )
    teacher.adapt_to(ClsDataPreprocessor(**CLIP, to_rgb=False))
    images, _ = tiny.batch()
    plain = make(
        getattr(tiny, kind)(), preprocessor=dict(IMAGENET, to_rgb=True)
    )
    plain.adapt_to(ClsDataPreprocessor(**CLIP, to_rgb=False))
    plain.model.load_state_dict(teacher.model.state_dict())
    expected = plain(images)
    if batch:
        images = images.to(memory_format=torch.channels_last)
    assert torch.allclose(teacher(images), expected, atol=1e-5)


def test_channels_last_reaches_weights_and_inputs(make, tiny):
    teacher = make(tiny.resnet(), channels_last=True)
    seen = []
    conv = teacher.model.backbone.layer1[0].conv1
    conv.register_forward_hook(lambda m, i, o: seen.append((i[0], o)))
    teacher(torch.randn(2, 3, 64, 64))
    for tensor in (conv.weight, *seen[0]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------ compile


class Pyramid(BaseModel):
    """Four stages that compile in seconds."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(4):
            self.add_module(f'stage{index}', nn.Conv2d(3, 3, 2, stride=2))
        self.head = nn.Linear(3, 5)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        for index in range(4):
            inputs = getattr(self, f'stage{index}')(inputs).relu()
        return self.head(inputs.mean((2, 3)))


def run_twice(teacher, taps=None):
    """Logits and records of the second of two runs."""
    recorder = StageOutputsRecorder(taps=taps)
    recorder.initialize(teacher.model)
    torch.manual_seed(0)
    for _ in range(2):
        images = torch.randn(2, 3, 64, 64)
        with recorder:
            logits = teacher(images)
    return [logits, *recorder.get_record_data()]


def test_compiled_teacher_gives_the_same_records_and_logits(
    tmp_path, monkeypatch
):
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        pytest.skip(f'no C++ compiler for torch.compile: {error}')
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    model = Pyramid()
    taps = [dict(source=f'stage{index}') for index in range(4)]
    expected = run_twice(Teacher(copy.deepcopy(model)), taps)
    try:
        results = run_twice(Teacher(model, compile=True), taps)
        assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0
    finally:
        torch.compiler.reset()
    for result, reference in zip(results, expected, strict=True):
        assert torch.allclose(result, reference, atol=1e-4)


@pytest.mark.parametrize('kind', ['swin', 'vit'])
def test_tail_of_a_compiled_teacher_replays(make, tiny, kind, monkeypatch):
    # What Dynamo makes of hooks, without the time to generate code.
    compile_in_place = nn.Module.compile
    monkeypatch.setattr(
        nn.Module,
        'compile',
        lambda module: compile_in_place(module, backend='eager'),
    )
    teacher = make(getattr(tiny, kind)(), compile=True)
    tail = teacher.build_tail(3)
    try:
        logits, *stages = run_twice(teacher)
        tokens = stages[2].flatten(2).transpose(1, 2)
        expected = stages[3].flatten(2).transpose(1, 2)
        assert torch.allclose(tail(tokens), expected, atol=1e-5)
    finally:
        torch.compiler.reset()


# ----------------------------------------------------------- moving, copying


def test_normalisation_moves_along(make):
    teacher = make(preprocessor=dict(IMAGENET, to_rgb=True))
    teacher.adapt_to(ClsDataPreprocessor(**CLIP, to_rgb=True))
    for place in (torch.float64, 'meta'):
        teacher.to(place)
        tensors = [teacher.scale, teacher.shift, *teacher.parameters()]
        for tensor in tensors:
            assert place in (tensor.dtype, tensor.device.type)
    assert len(teacher.state_dict()) > 2


def test_a_copy_is_the_teacher_itself(make):
    teacher = make()
    tail = teacher.build_tail(3)
    assert copy.deepcopy(teacher) is teacher
    assert copy.deepcopy(dict(deep=[teacher, tail]))['deep'] == [teacher, tail]
