import pytest
import torch
from mmpretrain.structures import DataSample

from mmcakd.models.distillers.labels import read_labels


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
