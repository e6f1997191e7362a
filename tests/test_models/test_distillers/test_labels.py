from types import SimpleNamespace

import pytest
import torch
from mmpretrain.structures import DataSample, MultiTaskDataSample
from torch import nn

from mmcakd.models.labels import (
    check_one_class,
    heads_of,
    is_multi_label,
    read_labels,
)


def labelled(count: int = 3) -> list[DataSample]:
    return [
        DataSample().set_gt_label(index).set_gt_score(torch.eye(4)[index])
        for index in range(count)
    ]


def test_hard_labels_are_class_indices():
    labels = read_labels(labelled(), 'hard')
    assert labels.tolist() == [0, 1, 2]
    assert labels.dtype == torch.int64


def test_soft_labels_are_scores_of_all_classes():
    labels = read_labels(labelled(), 'soft')
    assert torch.equal(labels, torch.eye(4)[:3])


def test_auto_labels_are_soft_where_there_are_scores():
    samples = labelled()
    assert torch.equal(
        read_labels(samples, 'auto'), read_labels(samples, 'soft')
    )
    hard = [DataSample().set_gt_label(index) for index in range(3)]
    assert read_labels(hard, 'auto').tolist() == [0, 1, 2]


def test_index_labels_are_places_in_the_data_set():
    samples = [DataSample(metainfo=dict(sample_idx=i)) for i in (7, 2)]
    labels = read_labels(samples, 'index')
    assert labels.tolist() == [7, 2]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize('samples', [None, [], [DataSample()]])
@pytest.mark.parametrize(
    ('kind', 'named'),
    [
        ('hard', 'gt_label'),
        ('soft', 'to_onehot=True'),
        ('auto', 'gt_label'),
        ('index', 'sample_idx.*meta_keys'),
    ],
)
def test_missing_labels_are_named(samples, kind, named):
    with pytest.raises(RuntimeError, match=named):
        read_labels(samples, kind)


# ------------------------------------------- what labels must not be taken for


def sample(**fields) -> DataSample:
    made = DataSample()
    if 'label' in fields:
        made.set_gt_label(fields['label'])
    if 'score' in fields:
        made.set_gt_score(torch.tensor(fields['score']))
    if 'classes' in fields:
        made.set_field(fields['classes'], 'num_classes', field_type='metainfo')
    if 'index' in fields:
        made.set_metainfo(dict(sample_idx=fields['index']))
    return made


@pytest.mark.parametrize('kind', ['hard', 'auto'])
@pytest.mark.parametrize(
    'labels',
    [
        # As many labels as images, by chance.
        [[0, 1], [], [2]],
        [[], [3, 1, 2], []],
        # Wherever in the batch it is.
        [1, 0, [2, 3]],
        [[2, 3], 1, 1],
    ],
)
def test_several_labels_of_an_image_are_never_read_as_one(kind, labels):
    with pytest.raises(ValueError, match='BinaryTargetLoss') as caught:
        read_labels([sample(label=label) for label in labels], kind)
    first = next(i for i, v in enumerate(labels) if v not in (0, 1))
    assert f'image {first} ' in str(caught.value)


@pytest.mark.parametrize('kind', ['soft', 'auto'])
@pytest.mark.parametrize(
    'scores',
    [
        [[1.0, 0, 0], [1.0, 1, 0]],
        [[0.0, 0, 0], [0.0, 1, 0]],
        [[0.5, 0.5, 0], [0.5, 0.5, 0.5]],
    ],
)
def test_multi_hot_scores_are_no_soft_labels(kind, scores):
    with pytest.raises(ValueError, match="'several'"):
        read_labels([sample(score=score) for score in scores], kind)


def test_several_labels_are_read_where_they_are_asked_for():
    scores = [[1.0, 1, 0], [0.0, 0, 0], [0.3, 1, 0.7]]
    labels = read_labels([sample(score=s) for s in scores], 'several')
    assert torch.equal(labels, torch.tensor(scores))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_shares_of_half_precision_sum_to_one(dtype):
    scores = torch.rand(4, 100).softmax(1).to(dtype)
    labels = read_labels(
        [DataSample().set_gt_score(s) for s in scores], 'soft'
    )
    assert torch.equal(labels, scores)


@pytest.mark.parametrize(
    ('score', 'named'),
    [
        ([1.5, -0.5], 'from 0 to 1'),
        ([float('nan'), 0.5], 'from 0 to 1'),
        ([0.5, 0.25, 0.25], r'\(2,\), \(3,\)'),
    ],
)
def test_scores_of_another_kind_are_refused(score, named):
    with pytest.raises(ValueError, match=named):
        read_labels([sample(score=[1.0, 0.0]), sample(score=score)], 'soft')


@pytest.mark.parametrize(
    ('kind', 'field'), [('hard', 'label'), ('soft', 'score')]
)
def test_samples_without_labels_are_counted(kind, field):
    value = dict(label=1, score=[0.0, 1.0])[field]
    samples = [sample(**{field: value}), sample(), sample()]
    for order in (samples, samples[::-1]):
        with pytest.raises(RuntimeError, match='2 of 3 data samples'):
            read_labels(order, kind)


def test_batch_half_soft_and_half_hard_is_refused():
    soft, hard = sample(label=1, score=[0.0, 1.0]), sample(label=0)
    for samples in ([soft, hard], [hard, soft]):
        with pytest.raises(RuntimeError, match='1 of 2 data samples'):
            read_labels(samples, 'auto')
        with pytest.raises(ValueError, match='1 of 2 data samples'):
            read_labels(samples, 'hard')


@pytest.mark.parametrize(
    ('labels', 'classes', 'named'),
    [
        ([0, 4], 4, 'from 0 to 4.*4 classes'),
        ([7, 0], 5, 'from 0 to 7.*5 classes'),
        ([-1, 0], 4, 'from -1 to 0.*4 classes'),
        ([-1, 0], None, 'from -1 to 0'),
    ],
)
def test_labels_of_classes_that_are_not_there(labels, classes, named):
    known = {} if classes is None else dict(classes=classes)
    with pytest.raises(ValueError, match=named):
        read_labels([sample(label=v, **known) for v in labels], 'hard')


MIXED = [[0.0, 1, 0], [0.3, 0, 0.7]]


def test_labels_of_mixed_images_are_not_hard():
    samples = [
        sample(label=label, score=score, index=label)
        for label, score in zip((1, 2), MIXED, strict=True)
    ]
    for kind in ('hard', 'index'):
        with pytest.raises(ValueError, match='class 2.*SwitchRecipeHook'):
            read_labels(samples, kind)
    assert torch.equal(read_labels(samples, 'auto'), torch.tensor(MIXED))


def test_hard_labels_have_to_agree_with_scores():
    with pytest.raises(ValueError, match='class 1'):
        read_labels([sample(label=0, score=[0.0, 1.0])], 'hard')


def test_places_of_images_with_several_labels_are_places():
    samples = [sample(score=[1.0, 1.0], index=5)]
    assert read_labels(samples, 'index').tolist() == [5]


def test_places_of_some_images_only_are_refused():
    with pytest.raises(RuntimeError, match='1 of 2 data samples.*meta_keys'):
        read_labels([sample(index=3), sample()], 'index')


@pytest.mark.parametrize('place', [[1, 2], 0.5])
def test_a_place_is_one_index(place):
    with pytest.raises(ValueError, match='one index of each image'):
        read_labels([sample(index=place), sample(index=place)], 'index')


def test_samples_of_several_tasks_are_named():
    samples = []
    for task in ('colour', 'shape'):
        made = MultiTaskDataSample()
        made.set_field(sample(label=1), task)
        samples.append(made)
    with pytest.raises(RuntimeError, match='colour, shape'):
        read_labels(samples, 'hard')


# ------------------------------------------------------------ what heads tell


class HuggingFace(nn.Module):
    """A wrapper, and the network inside with its config."""

    def __init__(self, problem: str | None = None) -> None:
        super().__init__()
        self.model = nn.Linear(2, 3)
        self.model.config = SimpleNamespace(problem_type=problem)


@pytest.mark.parametrize(
    ('problem', 'expected'),
    [
        ('multi_label_classification', True),
        ('single_label_classification', False),
        (None, False),
    ],
)
def test_hugging_face_tells_by_its_problem(problem, expected):
    (head,) = heads_of(HuggingFace(problem), [])
    assert is_multi_label(head) is expected


def test_a_bare_network_has_no_head():
    assert heads_of(nn.Linear(2, 3), []) == []


# ----------------------------------------------------------- without labels


@pytest.mark.parametrize(
    'samples',
    [
        None,
        [],
        [DataSample(), DataSample()],
        [sample(label=3), sample(label=0)],
        [sample(label=1, score=s) for s in MIXED],
        [sample(label=1), sample()],
    ],
)
def test_images_of_one_class_or_unlabelled_ones_may_be_compared(samples):
    check_one_class(samples)


@pytest.mark.parametrize(
    'samples',
    [
        [sample(label=1), sample(label=[1, 2])],
        [sample(label=1), sample(label=[])],
        [sample(score=[0.0, 1.0, 1.0])],
        [sample(score=[0.0, 1.0, 0.0]), sample(score=[0.0, 0.0, 0.0])],
    ],
)
def test_images_of_several_labels_may_not(samples):
    with pytest.raises(ValueError, match='BinaryTargetLoss'):
        check_one_class(samples)
