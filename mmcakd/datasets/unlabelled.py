"""Images without labels."""

import os
from collections.abc import Callable, Iterator, Sequence

from mmengine.fileio import exists, isdir, join_path, list_from_file
from mmpretrain.datasets import CustomDataset

from mmcakd.arguments import ArgumentError, NonNegativeInt
from mmcakd.registry import DATASETS

from .paths import find_missing

#: Suffixes of images, in lower case.
EXTENSIONS = (
    '.jpg',
    '.jpeg',
    '.png',
    '.ppm',
    '.bmp',
    '.pgm',
    '.tif',
    '.tiff',
    '.webp',
)


@DATASETS.register_module()
class UnlabelledImages(CustomDataset):
    """A data set of images without labels, in a folder or a list.

    Folders are read to any depth, in the order of their names; what links
    lead to is read once, and hidden files and folders are left out. It is
    MMPretrain's ``CustomDataset(with_label=False)``, for images in the wild.

    Samples have ``img_path`` and ``sample_idx``, and no ``gt_label``.

    Args:
        data_root (str): The folder. Defaults to ''.
        data_prefix (str | dict): A folder in it that has the images, if not
            all are meant. Defaults to ''.
        ann_file (str): A file with the path of an image on each line,
            absolute or relative to the folder; itself in ``data_root``, if
            that is given. Defaults to '', all images in the folder.
        extensions (Sequence[str]): Suffixes of images, in any case.
        pipeline (Sequence[dict | Callable]): What is done to a sample. This
            and the others are arguments of MMEngine's ``BaseDataset``.
            Defaults to nothing.

    Raises:
        FileNotFoundError: The folder, the list or an image on it is not
            there.
        ValueError: There is no image, or a line that is none.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mmcakd.datasets import UnlabelledImages
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / 'holidays' / '2024').mkdir(parents=True)
        >>> for name in ('a.png', 'holidays/2024/b.JPG', 'notes.txt'):
        ...     (folder / name).touch()
        >>> dataset = UnlabelledImages(data_root=str(folder))
        >>> [Path(dataset.get_data_info(i)['img_path']).name
        ...  for i in range(len(dataset))]
        ['a.png', 'b.JPG']
    """

    def __init__(
        self,
        data_root: str = '',
        data_prefix: str | dict = '',
        ann_file: str = '',
        extensions: Sequence[str] = EXTENSIONS,
        pipeline: Sequence[dict | Callable] = (),
        indices: int | Sequence[int] | None = None,
        metainfo: dict | None = None,
        serialize_data: bool = True,
        test_mode: bool = False,
        lazy_init: bool = False,
        max_refetch: NonNegativeInt = 1000,
    ) -> None:
        if not (data_root or data_prefix or ann_file):
            raise ArgumentError(
                'UnlabelledImages has neither a folder nor a list: set '
                'data_root, or ann_file'
            )
        super().__init__(
            data_root=os.path.expanduser(data_root),
            data_prefix=data_prefix,
            ann_file=ann_file,
            with_label=False,
            extensions=extensions,
            pipeline=pipeline,
            indices=indices,
            metainfo=metainfo,
            serialize_data=serialize_data,
            test_mode=test_mode,
            lazy_init=lazy_init,
            max_refetch=max_refetch,
        )

    def load_data_list(self) -> list[dict]:
        """List the images.

        Returns:
            list[dict]: ``img_path`` of each.
        """
        paths = self._read_list() if self.ann_file else self._walk()
        return [dict(img_path=path) for path in paths]

    @property
    def _listed_extensions(self) -> str:
        return ', '.join(sorted(self.extensions))

    def _walk(self) -> list[str]:
        root = os.path.normpath(self.img_prefix)
        if not isdir(root):
            raise FileNotFoundError(
                f'UnlabelledImages: {root} is no folder; set data_root to '
                'the folder of the images'
            )
        paths = [path for path in walk_files(root) if self.is_valid_file(path)]
        if not paths:
            raise ValueError(
                f'UnlabelledImages: no image is in {root} or a folder in it; '
                f'set data_root to a folder of {self._listed_extensions}'
            )
        return paths

    def _read_list(self) -> list[str]:
        if not exists(self.ann_file):
            raise FileNotFoundError(
                f'UnlabelledImages: there is no {self.ann_file}; set ann_file '
                'to a file with the path of an image on each line, in '
                'data_root if that is given'
            )
        lines = list_from_file(self.ann_file)
        if not lines:
            raise ValueError(
                f'UnlabelledImages: {self.ann_file} is empty; write the path '
                'of an image on each line'
            )
        for number, line in enumerate(lines, 1):
            if line != line.strip() or not self.is_valid_file(line):
                raise ValueError(
                    f'UnlabelledImages: line {number} of {self.ann_file} is '
                    f'{line!r}; write the path of an image on each line, '
                    'without labels or blanks around it, that ends in one of '
                    f'{self._listed_extensions}'
                )
        paths = [join_path(self.img_prefix, line) for line in lines]
        missing = find_missing(paths)
        if missing:
            raise FileNotFoundError(
                f'UnlabelledImages: {len(missing)} of the {len(paths)} images '
                f'that {self.ann_file} lists are not there, such as '
                f'{missing[0]}; set data_root to the folder that the paths '
                'start from'
            )
        return paths


def walk_files(root: str) -> Iterator[str]:
    """Find the files in a folder and in those in it, in a fixed order.

    Folders that are reached twice, by links, are read once. What is hidden is
    left out.

    Args:
        root (str): The folder.

    Yields:
        str: The path of a file, with the folder's in front.
    """
    seen = set()

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(
        root, followlinks=True, onerror=refuse
    ):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != '.')
        for name in sorted(files):
            if name[0] != '.':
                yield os.path.join(folder, name)
