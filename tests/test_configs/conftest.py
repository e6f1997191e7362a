"""Data sets of two images in the layout of the real ones."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope='session')
def imagenet_root(tmp_path_factory) -> Path:
    """ImageNet with an image of each of two classes, to train on."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    lines = []
    for label, wnid in enumerate(('n01440764', 'n01443537')):
        folder = root / 'train' / wnid
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{wnid}_0.JPEG')
        lines.append(f'{wnid}/{wnid}_0.JPEG {label}')
    (root / 'meta').mkdir()
    (root / 'meta' / 'train.txt').write_text('\n'.join(lines))
    return root


@pytest.fixture(scope='session')
def cifar100_root(tmp_path_factory) -> Path:
    """CIFAR-100 with two images in each split."""
    root = tmp_path_factory.mktemp('cifar100')
    rng = np.random.default_rng(0)
    folder = root / 'cifar-100-python'
    folder.mkdir()
    for split in ('train', 'test'):
        pixels = rng.integers(0, 256, (2, 3 * 32 * 32), dtype=np.uint8)
        split_file = dict(data=pixels, fine_labels=[7, 99])
        (folder / split).write_bytes(pickle.dumps(split_file))
    names = [f'class_{index}' for index in range(100)]
    (folder / 'meta').write_bytes(pickle.dumps(dict(fine_label_names=names)))
    return root


@pytest.fixture
def data_root(
    cifar100_root: Path, imagenet_root: Path, monkeypatch
) -> Callable[[str], str]:
    """Find the folder of a data set by its type in the config.

    MMPretrain checks the files of CIFAR-100 by their sums, and downloads what
    differs; for this test the sums are those of the small files.
    """
    from mmpretrain.datasets import CIFAR100

    def summed(name: str) -> str:
        path = cifar100_root / CIFAR100.base_folder / name
        return hashlib.md5(path.read_bytes()).hexdigest()

    for split in ('train', 'test'):
        sums = [[split, summed(split)]]
        monkeypatch.setattr(CIFAR100, f'{split}_list', sums)
    meta = CIFAR100.meta | dict(md5=summed('meta'))
    monkeypatch.setattr(CIFAR100, 'meta', meta)
    return dict(CIFAR100=str(cifar100_root), ImageNet=str(imagenet_root)).get
