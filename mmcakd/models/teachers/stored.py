"""Teachers whose answers were computed before."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

from mmcakd.registry import MODELS

from ..labels import read_labels


class StoredTeacher:
    """A teacher that is read instead of run.

    It takes the place of a :class:`mmcakd.models.teachers.Teacher` and gives
    the same records, by the same names, from the samples of a batch::

        teacher=dict(type='mmcakd.InMemoryTargets', records=dict(...))

    A subclass says where they are. Its records are of whole images as the
    student gets them; what must agree for that, such as the order of images
    or their augmentation, is the subclass's to check.
    """

    def __deepcopy__(self, memo: dict) -> 'StoredTeacher':
        """Share the targets with every copy of the algorithm."""
        return self

    def check_record(self, recorder: str, data_idx: int | str | None) -> None:
        """Check, before training, that a record is there.

        Args:
            recorder (str): The recorder that would make it.
            data_idx (int | str, optional): Which stage or head.

        Raises:
            ValueError: It is not.
        """
        raise NotImplementedError

    def check_dataset(self, dataset: Dataset) -> None:
        """Check, before training, that the targets are of a training set.

        Args:
            dataset (Dataset): It.

        Raises:
            ValueError: They are of another.
        """

    def read(
        self,
        recorder: str,
        data_idx: int | str | None,
        data_samples: list | None,
    ) -> Any:
        """Read a record of a batch.

        Args:
            recorder (str): See :meth:`check_record`.
            data_idx (int | str, optional): See :meth:`check_record`.
            data_samples (list): The samples of the batch.

        Returns:
            Any: What the recorder of a live teacher would give.
        """
        raise NotImplementedError

    def example(
        self, recorder: str, data_idx: int | str | None, num_images: int
    ) -> Any:
        """Give a record of ``num_images`` images, whichever, as an example."""
        raise NotImplementedError


@MODELS.register_module()
class InMemoryTargets(StoredTeacher):
    """Stored targets in memory: a tensor for each record, a row an image.

    For answers that are at hand as tensors: embeddings of a model that does
    not run here, scores of an annotator. Rows are found by ``sample_idx``,
    the place of an image in the data set, so that they do not depend on the
    order of batches, and images that are mixed are refused.

    Args:
        records (dict): Tensors, arrays or lists ``(M, ...)`` for the ``M``
            images of the training set, by the name of their recorder; of a
            recorder of several stages or heads, a dict of them by
            ``data_idx``.

    Raises:
        ValueError: Records of different numbers of images; one that is read
            and not there; an image beyond the last row.

    Examples:
        >>> import torch
        >>> from mmpretrain.structures import DataSample
        >>> from mmcakd.models.teachers import InMemoryTargets
        >>> targets = InMemoryTargets(dict(logits=torch.eye(5)))
        >>> samples = [DataSample(metainfo=dict(sample_idx=3))]
        >>> targets.read('logits', None, samples)
        tensor([[0., 0., 0., 1., 0.]])
    """

    def __init__(self, records: Mapping) -> None:
        self.records = {
            name: {
                index: torch.as_tensor(values)
                for index, values in (
                    parts if isinstance(parts, Mapping) else {None: parts}
                ).items()
            }
            for name, parts in records.items()
        }
        counts = {
            f'{name}[{index}]' if index is not None else name: len(values)
            for name, parts in self.records.items()
            for index, values in parts.items()
        }
        if len(set(counts.values())) != 1:
            raise ValueError(
                'InMemoryTargets needs a row of each record for every '
                f'training image, but got {counts or "no records"}'
            )
        (self.num_images,) = set(counts.values())

    def check_record(self, recorder: str, data_idx: int | str | None) -> None:
        """See :meth:`StoredTeacher.check_record`."""
        parts = self.records.get(recorder)
        if parts is None:
            raise ValueError(
                f'there are no stored targets {recorder!r}, only '
                f'{list(self.records)}'
            )
        if data_idx not in parts:
            raise ValueError(
                f'of the stored targets {recorder!r} there is no data_idx='
                f'{data_idx!r}, only {list(parts)}'
            )

    def check_dataset(self, dataset: Dataset) -> None:
        """See :meth:`StoredTeacher.check_dataset`."""
        # Places are those in the innermost one.
        while hasattr(dataset, 'dataset'):
            dataset = dataset.dataset
        if len(dataset) != self.num_images:
            raise ValueError(
                f'there are stored targets of {self.num_images} images, but '
                f'the training set has {len(dataset)}: they are of another '
                'training set'
            )

    def read(
        self,
        recorder: str,
        data_idx: int | str | None,
        data_samples: list | None,
    ) -> torch.Tensor:
        """See :meth:`StoredTeacher.read`."""
        places = read_labels(data_samples, 'index')
        if int(places.max()) >= self.num_images:
            raise ValueError(
                f'the batch has image {int(places.max())} of the training '
                f'set, but there are stored targets of {self.num_images} '
                'images: they are of another training set'
            )
        return self.records[recorder][data_idx][places.cpu()]

    def example(
        self, recorder: str, data_idx: int | str | None, num_images: int
    ) -> torch.Tensor:
        """See :meth:`StoredTeacher.example`."""
        places = torch.arange(num_images) % self.num_images
        return self.records[recorder][data_idx][places]
