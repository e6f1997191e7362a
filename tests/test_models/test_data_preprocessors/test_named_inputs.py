import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmpretrain.engine.hooks import SwitchRecipeHook
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.models.utils.batch_augments import RandomBatchAugment
from mmpretrain.structures import DataSample
from torch import nn
from torch.testing import assert_close

from mmcakd.models.data_preprocessors import NamedInputsPreprocessor
from mmcakd.models.teachers.normalisation import read_normalisation
from mmcakd.registry import MODELS

IMAGE = dict(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0], to_rgb=True)
#: As detectors have it.
PADDED = dict(
    type='mmengine.ImgDataPreprocessor',
    mean=IMAGE['mean'],
    std=IMAGE['std'],
    bgr_to_rgb=True,
    pad_size_divisor=32,
)
DEPTH = dict(mean=[2000.0], std=[500.0], pad_value=-7)
MIXUP = dict(augments=dict(type='mmpretrain.Mixup', alpha=1.0))


class Model(BaseModel):
    def __init__(self, data_preprocessor: nn.Module) -> None:
        super().__init__(data_preprocessor)
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs


def build(image=None, **others) -> NamedInputsPreprocessor:
    return MODELS.build(
        dict(
            type='mmcakd.NamedInputsPreprocessor',
            image=image or IMAGE,
            **(others or dict(depth=DEPTH)),
        )
    )


def images(*sizes, channels=3) -> list[torch.Tensor]:
    return [torch.randint(256, (channels, *size)).byte() for size in sizes]


def depths(*sizes) -> list[torch.Tensor]:
    return [torch.randint(2**16, (1, *size)).int() for size in sizes]


def samples(count: int) -> list[DataSample]:
    return [DataSample().set_gt_label(i) for i in range(count)]


@pytest.mark.parametrize('collate', [list, torch.stack])
@pytest.mark.parametrize('training', [True, False])
def test_each_input_is_normalised_by_its_own(collate, training):
    image, depth = images((8, 6), (8, 6)), depths((8, 6), (8, 6))
    batch = build()(
        dict(
            inputs=dict(image=collate(image), depth=collate(depth)),
            data_samples=samples(2),
        ),
        training,
    )
    mean, std = (torch.tensor(IMAGE[k]).view(3, 1, 1) for k in ('mean', 'std'))
    raw = torch.stack(image).float()
    assert_close(batch['inputs']['image'], (raw.flip(1) - mean) / std)
    raw = torch.stack(depth).float()
    assert_close(batch['inputs']['depth'], (raw - 2000) / 500)
    assert [int(s.gt_label) for s in batch['data_samples']] == [0, 1]


@pytest.mark.parametrize('image', [IMAGE | dict(num_classes=5), PADDED])
@pytest.mark.parametrize('training', [True, False])
def test_a_plain_batch_is_that_of_the_image_alone(image, training):
    data = dict(inputs=images((40, 50), (30, 60)), data_samples=samples(2))
    alone = MODELS.build(dict(type='mmpretrain.ClsDataPreprocessor') | image)
    expected = alone(copy.deepcopy(data), training)
    batch = build(image)(data, training)
    assert torch.equal(batch['inputs'], expected['inputs'])
    assert batch.keys() == expected.keys()


def test_paired_inputs_are_padded_to_the_size_of_the_images():
    sizes = (40, 50), (30, 70)
    image, depth = images(*sizes), depths(*sizes)
    batch = build(PADDED)(dict(inputs=dict(image=image, depth=depth)), True)
    assert batch['inputs']['image'].shape == (2, 3, 64, 96)
    padded = batch['inputs']['depth']
    assert padded.shape == (2, 1, 64, 96)
    for got, own, (height, width) in zip(padded, depth, sizes, strict=True):
        assert_close(got[:, :height, :width], (own.float() - 2000) / 500)
        assert (got[:, height:] == -7).all()
        assert (got[:, :, width:] == -7).all()


def test_a_view_of_another_size_keeps_it():
    batch = build(PADDED, view1=IMAGE)(
        dict(
            inputs=dict(
                image=images((64, 64), (64, 64)),
                view1=images((24, 20), (24, 28)),
            )
        )
    )
    assert batch['inputs']['view1'].shape == (2, 3, 24, 28)


@pytest.mark.parametrize(
    ('given', 'named'),
    [
        (['image'], 'without depth'),
        (['image', 'depth', 'flow'], 'with flow'),
        (['depth', 'flow'], 'without image and with flow'),
    ],
)
def test_a_batch_of_other_inputs_is_refused_by_name(given, named):
    inputs = {name: images((8, 8)) for name in given}
    with pytest.raises(ValueError, match=f'came {named}, but'):
        build()(dict(inputs=inputs))


def test_preprocessor_of_an_unknown_input():
    preprocessor = build()
    assert preprocessor.of('depth').mean.item() == 2000
    with pytest.raises(ValueError, match="'dpeth'; did you mean 'depth'"):
        preprocessor.of('dpeth')
    with pytest.raises(ValueError, match='it has image, depth'):
        preprocessor.of('flow')


@pytest.mark.parametrize(
    'given',
    [
        dict(image=IMAGE | dict(batch_augments=MIXUP, num_classes=5)),
        dict(batch_augments=MIXUP),
        dict(view1=IMAGE | dict(batch_augments=MIXUP, num_classes=5)),
    ],
)
def test_mixing_is_refused(given):
    with pytest.raises(ValueError, match='change one input alone'):
        build(**dict(depth=DEPTH) | given)


def test_a_classifier_may_own_it(tiny):
    named = dict(
        type='mmcakd.NamedInputsPreprocessor', image=IMAGE, depth=DEPTH
    )
    cfg = tiny.classifier(tiny.resnet())
    model = MODELS.build(cfg | dict(data_preprocessor=dict(named)))
    assert model.data_preprocessor.of('depth').mean.item() == 2000
    with pytest.raises(ValueError, match="the student's train_cfg"):
        MODELS.build(cfg | dict(data_preprocessor=named, train_cfg=MIXUP))


def test_mixing_that_a_hook_switches_on_is_refused_in_training_alone():
    preprocessor = build()
    assert preprocessor.batch_augments is None
    runner = SimpleNamespace(model=Model(data_preprocessor=preprocessor))
    SwitchRecipeHook._switch_batch_augments(
        runner, RandomBatchAugment(**MIXUP)
    )
    assert preprocessor.of('image').batch_augments is not None
    assert preprocessor.of('image').to_onehot is True
    data = dict(inputs=dict(image=images((8, 8)), depth=depths((8, 8))))
    preprocessor(data, False)
    with pytest.raises(ValueError, match='change one input alone'):
        preprocessor(data, True)
    preprocessor.batch_augments = None
    preprocessor(data, True)


def test_settings_given_beside_the_inputs_are_refused():
    with pytest.raises(ValueError, match=r'as in image=dict\(mean='):
        build(mean=[1, 2, 3], std=[1, 2, 3])


def test_what_is_read_and_set_is_the_images():
    preprocessor = build(PADDED)
    image = preprocessor.of('image')
    assert preprocessor.mean is image.mean
    assert preprocessor.pad_size_divisor == 32
    assert read_normalisation(preprocessor).flips
    preprocessor.pad_value = 3
    assert image.pad_value == 3
    assert preprocessor.of('depth').pad_value == -7
    assert not hasattr(preprocessor, 'batch_augments')
    with pytest.raises(AttributeError, match='ImgDataPreprocessor'):
        preprocessor.nothing  # noqa: B018
    preprocessor.eval()
    assert not image.training and not preprocessor.of('depth').training


@pytest.mark.parametrize('owner', [Model, lambda data_preprocessor: None])
def test_all_inputs_go_to_the_device_of_the_model(owner):
    preprocessor = build()
    (owner(data_preprocessor=preprocessor) or preprocessor).to('meta')
    assert preprocessor.device == torch.device('meta')
    for name in ('image', 'depth'):
        assert preprocessor.of(name).device == torch.device('meta')
        assert preprocessor.of(name).mean.device == torch.device('meta')
    inputs = dict(image=images((8, 8)), depth=depths((8, 8)))
    batch = preprocessor(dict(inputs=inputs))
    assert {x.device.type for x in batch['inputs'].values()} == {'meta'}
    assert preprocessor.cast_data(torch.ones(1)).device.type == 'meta'


@pytest.mark.parametrize(
    'copy_', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_is_its_own(copy_):
    preprocessor = build()
    twin = copy_(preprocessor)
    twin.mean.zero_()
    assert preprocessor.mean.flatten().tolist() == IMAGE['mean']
    assert type(twin.of('image')) is ClsDataPreprocessor


def test_a_model_that_has_it_is_initialised():
    model = Model(data_preprocessor=build())
    model.init_weights()
    assert model.state_dict().keys() == {'conv.weight', 'conv.bias'}


def test_nothing_of_it_is_saved():
    assert not build().state_dict() and not list(build().parameters())


def test_any_preprocessor_of_openmmlab_prepares_an_input():
    preprocessor = build(
        IMAGE, depth=PADDED | dict(mean=[5.0], std=[2.0], bgr_to_rgb=False)
    )
    assert type(preprocessor.of('depth')) is ImgDataPreprocessor
    data = dict(inputs=dict(image=images((8, 8)), depth=depths((8, 8))))
    depth = preprocessor(data)['inputs']['depth']
    assert depth.shape == (1, 1, 32, 32)
    assert_close(
        depth[0, :, :8, :8], (data['inputs']['depth'][0].float() - 5) / 2
    )
