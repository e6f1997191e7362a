import os
from pathlib import Path

import mmengine.registry
import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.registry import DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from mmcakd.datasets import UnlabelledImages, make_resumable
from mmcakd.engine.hooks.training_set_hook import find_labels

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=8),
    dict(type='PackInputs'),
]


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    value = sum(map(ord, path.name)) % 256
    pixels = np.arange(12 * 10 * 3).reshape(12, 10, 3) + value
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Images at several depths, and what is none."""
    root = tmp_path / 'my images'
    for name in (
        'b.png',
        'A.JPG',
        'deep/er/est/c.Jpeg',
        'deep/d.tiff',
        '.hidden/e.png',
        'deep/.f.png',
    ):
        draw(root / name)
    (root / 'readme.txt').write_text('no image')
    (root / 'empty').mkdir()
    return root


FOUND = ['A.JPG', 'b.png', 'deep/d.tiff', 'deep/er/est/c.Jpeg']


def names(dataset: UnlabelledImages, root: Path) -> list[str]:
    return [
        os.path.relpath(dataset.get_data_info(i)['img_path'], root)
        for i in range(len(dataset))
    ]


def test_folders_are_read_to_any_depth_in_order(folder):
    dataset = UnlabelledImages(data_root=str(folder))
    assert names(dataset, folder) == FOUND
    assert dataset.get_data_info(2).keys() == {'img_path', 'sample_idx'}
    assert dataset.get_data_info(2)['sample_idx'] == 2


def test_a_folder_in_the_root(folder):
    dataset = UnlabelledImages(data_root=str(folder), data_prefix='deep')
    assert names(dataset, folder) == FOUND[2:]


def test_links_in_a_circle_end(folder):
    (folder / 'deep' / 'up').symlink_to(folder)
    (folder / 'zoo').symlink_to(folder / 'deep' / 'er')
    assert names(UnlabelledImages(data_root=str(folder)), folder) == FOUND


def test_images_behind_a_link_are_read(folder, tmp_path):
    draw(tmp_path / 'elsewhere' / 'z.png')
    (folder / 'link').symlink_to(tmp_path / 'elsewhere')
    dataset = UnlabelledImages(data_root=str(folder))
    assert names(dataset, folder) == [*FOUND, 'link/z.png']


@pytest.mark.parametrize('scope', [None, 'mmpretrain', 'mmcakd'])
def test_it_is_one_line_in_a_config(folder, scope):
    with DefaultScope.overwrite_default_scope(scope):
        dataset = mmengine.registry.DATASETS.build(
            dict(type='mmcakd.UnlabelledImages', data_root=str(folder))
        )
    assert len(dataset) == 4


def test_list_of_relative_and_absolute_paths(folder, tmp_path):
    draw(tmp_path / 'other' / 'one more.png')
    listed = ['deep/d.tiff', str(tmp_path / 'other/one more.png'), 'A.JPG']
    (folder / 'list.txt').write_text('\n'.join(listed) + '\n')
    dataset = UnlabelledImages(data_root=str(folder), ann_file='list.txt')
    assert names(dataset, folder) == [
        'deep/d.tiff',
        '../other/one more.png',
        'A.JPG',
    ]
    elsewhere = tmp_path / 'elsewhere.txt'
    elsewhere.write_text('d.tiff\r\n')
    dataset = UnlabelledImages(
        data_root=str(folder), data_prefix='deep', ann_file=str(elsewhere)
    )
    assert names(dataset, folder) == ['deep/d.tiff']


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('', 'list.txt is empty; write the path'),
        ('b.png\n\nA.JPG\n', "line 2 of .*list.txt is ''"),
        ('b.png\n  \n', "line 2 of .*list.txt is '  '"),
        ('b.png 0\nA.JPG 1\n', "line 1 of .*list.txt is 'b.png 0'.*labels"),
        (' b.png\n', "line 1 of .*list.txt is ' b.png'.*blanks"),
        ('b.png\nno.png\nnor.png\n', '2 of the 3 images .* such as .*/no.png'),
    ],
)
def test_a_list_that_cannot_be_read_is_explained(folder, text, says):
    (folder / 'list.txt').write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        UnlabelledImages(data_root=str(folder), ann_file='list.txt')


def test_a_folder_without_images_is_explained(folder):
    with pytest.raises(ValueError, match='no image is in .*/empty or a fold'):
        UnlabelledImages(data_root=str(folder / 'empty'))


@pytest.mark.parametrize('name', ['nowhere', 'b.png'])
def test_a_folder_that_is_none_is_explained(folder, name):
    with pytest.raises(FileNotFoundError, match=f'{name} is no folder; set'):
        UnlabelledImages(data_root=str(folder / name))


def test_a_list_that_is_not_there_is_explained(folder):
    with pytest.raises(FileNotFoundError, match='there is no .*/list.txt'):
        UnlabelledImages(data_root=str(folder), ann_file='list.txt')


def test_neither_folder_nor_list_is_explained():
    with pytest.raises(ValueError, match='set data_root, or ann_file'):
        UnlabelledImages()


def test_labels_are_not_asked_for(folder):
    assert find_labels(UnlabelledImages(data_root=str(folder))) is None


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_of_a_loader_have_no_labels(folder, workers):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = UnlabelledImages(data_root=str(folder), pipeline=PIPELINE)
    loader = DataLoader(
        dataset, 3, num_workers=workers, collate_fn=default_collate
    )
    make_resumable(loader, seed=0)
    batches = list(loader)
    assert [batch['inputs'].shape for batch in batches] == [
        (3, 3, 8, 8),
        (1, 3, 8, 8),
    ]
    samples = [s for batch in batches for s in batch['data_samples']]
    assert [s.sample_idx for s in samples] == [0, 1, 2, 3]
    assert not any('gt_label' in s for s in samples)
    again = torch.cat([batch['inputs'] for batch in loader])
    assert torch.equal(again, torch.cat([b['inputs'] for b in batches]))
