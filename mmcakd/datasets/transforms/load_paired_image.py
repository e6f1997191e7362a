"""Another modality of an image, from a folder of the same layout."""

import os
from typing import Any, Literal

from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import join_path

from mmcakd.registry import TRANSFORMS

from ..paths import find_missing
from .names import add_input, check_name


@TRANSFORMS.register_module()
class LoadPairedImage(LoadImageFromFile):
    """Load what belongs to an image, such as its depth map.

    The file lies under ``root`` where the image lies under ``image_root``,
    and has the same name. It is kept beside the image; transforms that follow
    change the image alone, but for :class:`SharedTransforms`.

    Files are read as they are by default: a PNG of 16 bits gives uint16 of
    shape (H, W). They are not turned by an EXIF orientation, as MMCV turns
    images; to leave those, too, load them with
    ``color_type='color_ignore_orientation'``.

    ``mmcakd.TrainingSetHook`` looks before training whether all are there.

    Args:
        name (str): What the input is called, such as ``'depth'``.
        root (str): Folder of these files.
        image_root (str): Folder of the images.
        suffix (str, optional): What the name of a file ends in, instead of
            the image's suffix. Defaults to None, the same.
        color_type (str): As of MMCV's ``LoadImageFromFile``; ``'color'`` and
            ``'grayscale'`` give 8 bits. Defaults to ``'unchanged'``.
        to_float32 (bool): Whether to convert to float32. Defaults to False.
        imdecode_backend (str): Defaults to ``'cv2'``.
        backend_args (dict, optional): Of MMEngine's file backend. Defaults
            to None.

    Raises:
        FileNotFoundError: An image has no such file.
        ValueError: An image is not under ``image_root``, or in no file.

    Examples:
        >>> import mmcakd
        >>> from mmcakd.datasets import LoadPairedImage
        >>> load = LoadPairedImage(
        ...     name='depth', root='data/depth', image_root='data/images',
        ...     suffix='.png')
        >>> load.find('data/images/kitchen/001.jpg')
        'data/depth/kitchen/001.png'
    """

    def __init__(
        self,
        name: str,
        root: str,
        image_root: str,
        suffix: str | None = None,
        color_type: Literal[
            'unchanged', 'color', 'grayscale', 'color_ignore_orientation'
        ] = 'unchanged',
        to_float32: bool = False,
        imdecode_backend: str = 'cv2',
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(
            to_float32=to_float32,
            color_type=color_type,
            imdecode_backend=imdecode_backend,
            backend_args=backend_args,
        )
        check_name('LoadPairedImage', name)
        self.name = name
        self.root = root
        self.image_root = image_root
        self.suffix = suffix

    def find(self, img_path: str) -> str:
        """Say where the file that belongs to an image should be.

        Args:
            img_path (str): The image's.
        """
        path = os.path.relpath(img_path, self.image_root)
        if path.split(os.sep)[0] == os.pardir:
            raise ValueError(
                f'LoadPairedImage: {img_path} does not lie in '
                f'{self.image_root}; set image_root to the folder of the '
                f'images, which is laid out as {self.root}'
            )
        if self.suffix is not None:
            path = os.path.splitext(path)[0] + self.suffix
        return join_path(self.root, path)

    def check_dataset(self, dataset: Any) -> None:
        """Check that all images of a data set have their file.

        Args:
            dataset (Dataset): Of MMEngine, without wrappers.

        Raises:
            FileNotFoundError: Some have none.
        """
        images = [
            _path_of(dataset.get_data_info(index))
            for index in range(len(dataset))
        ]
        files = [self.find(image) for image in images]
        missing = find_missing(files, self.backend_args)
        if missing:
            image = images[files.index(missing[0])]
            raise self._not_there(
                missing[0],
                f'{image}, and so for {len(missing)} of {len(images)} images',
            )

    def _not_there(self, file: str, images: str) -> FileNotFoundError:
        return FileNotFoundError(
            f'LoadPairedImage: there is no {file}, the {self.name} of '
            f'{images}; set root, image_root and suffix so that each image '
            'has its file, or leave the image out'
        )

    def transform(self, results: dict) -> dict:
        """Load the file.

        Args:
            results (dict): Has ``img_path``.

        Returns:
            dict: Has the image under its name, too.
        """
        path = self.find(_path_of(results))
        try:
            loaded = super().transform(dict(img_path=path))
        except FileNotFoundError as error:
            raise self._not_there(path, results['img_path']) from error
        add_input(results, self.name, loaded['img'])
        paired = [*results.get('paired_inputs', ()), self.name]
        return results | dict(paired_inputs=paired)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(name={self.name!r}, root={self.root!r}, '
            f'image_root={self.image_root!r}, suffix={self.suffix!r})'
        )


def _path_of(sample: dict) -> str:
    if 'img_path' not in sample:
        raise ValueError(
            'LoadPairedImage: the samples have no img_path, so that it cannot '
            'be known which file belongs to an image; take a data set of '
            'image files'
        )
    return sample['img_path']
