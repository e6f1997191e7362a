"""The labels of a batch, of any kind."""

import torch

#: What a reference can read of the data samples.
LABELS = ('hard', 'soft', 'auto', 'index')


def read_labels(data_samples: list | None, kind: str) -> torch.Tensor:
    """Read the labels of a batch.

    Args:
        data_samples (list[DataSample]): Samples with ``gt_label`` or, after
            MixUp, CutMix or ``to_onehot``, ``gt_score``; and, from a data
            set of MMEngine, ``sample_idx``.
        kind (str): ``'hard'`` for class indices ``(N,)``, ``'soft'`` for
            ``(N, C)``, ``'auto'`` for soft ones if there are, ``'index'`` for
            places in the data set ``(N,)``.

    Raises:
        RuntimeError: The samples have no such labels.
    """
    if kind == 'auto':
        has_scores = data_samples and 'gt_score' in data_samples[0]
        kind = 'soft' if has_scores else 'hard'
    field = dict(hard='gt_label', soft='gt_score', index='sample_idx')[kind]
    if not data_samples or field not in data_samples[0]:
        cures = dict(
            hard='',
            soft='; set to_onehot=True and num_classes in data_preprocessor',
            index="; keep 'sample_idx' in meta_keys of PackInputs",
        )
        raise RuntimeError(
            f'a loss reads {kind} labels, but the data samples have no '
            f'{field}{cures[kind]}'
        )
    labels = [sample.get(field) for sample in data_samples]
    if kind == 'index':
        return torch.tensor(labels)
    return torch.cat(labels) if kind == 'hard' else torch.stack(labels)
