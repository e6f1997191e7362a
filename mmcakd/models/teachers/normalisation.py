"""How images are normalised: by a preprocessor, a pipeline, for a network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import nn


@dataclass(frozen=True, eq=False)
class Normalisation:
    """What happens to the values of raw images, channel by channel.

    ``(x - mean) / std``, after the channels were turned around if ``flips``.
    Raw images are what the data set loads, with values from 0 to 255 and, as
    OpenMMLab loads files, in the order BGR.

    Args:
        mean (Tensor): ``(C, 1, 1)``, or one for all channels.
        std (Tensor): Likewise.
        flips (bool): Whether the channels are turned around first.

    Examples:
        >>> import torch
        >>> from mmcakd.models.teachers.normalisation import Normalisation
        >>> one = torch.ones(3, 1, 1)
        >>> halved = Normalisation(0 * one, 2 * one, True)
        >>> shifted = Normalisation(one, one, True)
        >>> both = halved.then(shifted)
        >>> both(torch.tensor([4.0, 6.0, 8.0]).view(1, 3, 1, 1)).flatten()
        tensor([1., 2., 3.])
    """

    mean: torch.Tensor
    std: torch.Tensor
    flips: bool = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images ``(N, C, H, W)``."""
        images = images.flip(1) if self.flips else images
        return (images - self.mean) / self.std

    def then(self, later: 'Normalisation') -> 'Normalisation':
        """Join two, of which this one comes first."""
        mean, std = self.mean, self.std
        if later.flips:
            mean, std = mean.flip(0), std.flip(0)
        return Normalisation(
            mean + std * later.mean,
            std * later.std,
            self.flips != later.flips,
        )

    def turn_into(
        self, other: 'Normalisation'
    ) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Find how images normalised like this become those of another.

        Returns:
            tuple[Tensor, Tensor, bool]: The factor, then the summand, after
            the channels were turned around if the last is true.
        """
        flips = self.flips != other.flips
        mean, std = self.mean, self.std
        if flips:
            mean, std = mean.flip(0), std.flip(0)
        return std / other.std, (mean - other.mean) / other.std, flips


#: Of images that are as they were loaded.
RAW = Normalisation(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))

#: Transforms that change the values of images or the order of channels, as
#: configs call them.
NORMALISING = (
    'Normalize',
    'NumpyToPIL',
    'PILToNumpy',
    'torchvision/ToTensor',
    'torchvision/ConvertImageDtype',
    'torchvision/Normalize',
)


def is_rgb(preprocessor: nn.Module) -> bool:
    """Whether a preprocessor turns BGR images into RGB."""
    # The switch of MMPretrain's preprocessor; of MMEngine's, which is also
    # MMDetection's; and of MMSegmentation's.
    switches = ('to_rgb', '_channel_conversion', 'channel_conversion')
    return any(getattr(preprocessor, switch, False) for switch in switches)


def read_normalisation(preprocessor: nn.Module) -> Normalisation:
    """Read what a preprocessor does to raw images."""
    flips = is_rgb(preprocessor)
    if not getattr(preprocessor, '_enable_normalize', False):
        return Normalisation(RAW.mean, RAW.std, flips)
    return Normalisation(
        preprocessor.mean.float().cpu(), preprocessor.std.float().cpu(), flips
    )


def find_own_normalisation(
    model: BaseModel, loads_rgb: bool = False
) -> Normalisation | None:
    """Find out how a network wants its images, from the network itself.

    That is what its preprocessor does, or else what the package that a
    wrapped network comes from says of it: timm's ``default_cfg``,
    torchvision's weights or Hugging Face's image processor.

    Args:
        model (BaseModel): The network, perhaps in a wrapper.
        loads_rgb (bool): Whether raw images are RGB, as those of CIFAR are,
            which the other packages want. Defaults to False.

    Returns:
        Normalisation, optional: None if it does not say.

    Raises:
        LookupError: It is one of Hugging Face's, which come with an image
            processor, and that is not on this machine.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    own = read_normalisation(preprocessor)
    if own.flips or getattr(preprocessor, '_enable_normalize', False):
        return own
    network = getattr(model, 'model', None)
    package = type(network).__module__.partition('.')[0]
    found = None
    if package == 'timm':
        source = network.pretrained_cfg or {}
        found = _of_unit_range(source.get('mean'), source.get('std'))
    elif package == 'torchvision':
        found = _of_torchvision(model)
    elif package == 'transformers':
        found = _of_hugging_face(network)
    return found and replace(found, flips=not loads_rgb)


def _of_unit_range(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalisation | None:
    """Of RGB images with values from 0 to 1."""
    if mean is None or std is None:
        return None
    mean, std = (
        torch.tensor(value).float().view(-1, 1, 1) * 255
        for value in (mean, std)
    )
    return Normalisation(mean, std, flips=True)


def _of_torchvision(model: BaseModel) -> Normalisation | None:
    from torchvision.models import get_model_weights

    try:
        kinds = get_model_weights(model.model_name)
    except (AttributeError, ValueError):
        return None
    found = {
        (tuple(transforms.mean), tuple(transforms.std))
        for transforms in (weights.transforms() for weights in kinds)
    }
    return _of_unit_range(*found.pop()) if len(found) == 1 else None


def _of_hugging_face(network: nn.Module) -> Normalisation:
    from transformers import AutoImageProcessor

    name = network.config.name_or_path
    try:
        processor = AutoImageProcessor.from_pretrained(
            name, local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        detail = str(error).strip().split('\n')[0]
        raise LookupError(
            f'{name or "it"} has no image processor on this machine ({detail})'
        ) from error
    return measure_processor(processor)


def measure_processor(processor: Any) -> Normalisation:
    """Measure what an image processor of Hugging Face does to RGB images.

    Rescaling, normalising and offsets are spread over many options, which
    differ between processors; what they do to grey images does not lie.
    """
    import numpy as np

    sides = [
        getattr(processor, 'size', None),
        getattr(processor, 'crop_size', None),
    ]
    side = 2 * max((max(dict(s).values()) for s in sides if s), default=256)
    values = []
    for grey in (0, 255):
        image = np.full((side, side, 3), grey, np.uint8)
        pixels = processor(image, return_tensors='pt')['pixel_values']
        height, width = pixels.shape[-2:]
        centre = pixels[0, :, height // 2, width // 2]
        values.append(centre.double().view(-1, 1, 1))
    black, white = values
    std = 255 / (white - black)
    return Normalisation((-black * std).float(), std.float(), flips=True)


def read_pipeline(
    transforms: Sequence[Any], name: str = 'image'
) -> Normalisation:
    """Read what the transforms of a data set do to the values of images.

    Known are MMCV's ``Normalize``, MMPretrain's ``NumpyToPIL`` and
    ``PILToNumpy``, and torchvision's ``ToTensor``, ``ConvertImageDtype``,
    ``ToDtype`` and ``Normalize``.

    Args:
        transforms (Sequence): Transforms of a pipeline, built.
        name (str): The input that is meant. Transforms change the image; what
            ``mmcakd.AnotherView`` copies and ``mmcakd.LoadPairedImage`` loads
            is changed by no other than those in ``AnotherView`` and
            ``mmcakd.SharedTransforms``. Defaults to 'image'.

    Returns:
        Normalisation: All of them joined.

    Raises:
        ValueError: Some images are normalised and others are not.

    Examples:
        >>> from mmcv.transforms import Normalize
        >>> from mmcakd.datasets import AnotherView
        >>> from mmcakd.models.teachers.normalisation import read_pipeline
        >>> normalise = Normalize([1, 2, 3], [4, 5, 6])
        >>> pipeline = [AnotherView('view1', []), normalise]
        >>> found = read_pipeline(pipeline)
        >>> found.mean.flatten(), found.flips
        (tensor([1., 2., 3.]), True)
        >>> read_pipeline(pipeline, 'view1').mean.flatten()
        tensor([0.])
    """
    # Nothing is done at first to what is loaded beside the image.
    wholes = {'image': RAW, name: RAW}
    for transform in _one_by_one(transforms):
        kind = type(transform).__name__
        if kind == 'AnotherView':
            step = read_pipeline(transform.transforms)
            wholes[transform.name] = wholes['image'].then(step)
            continue
        changed = {'image'}
        if kind == 'SharedTransforms':
            changed.update(transform.names)
            step = read_pipeline(transform.transforms)
        elif hasattr(transform, 'transforms'):
            step = _read_nested(transform)
        else:
            step = _read_transform(transform)
        if step is not None and step is not RAW:
            for one in changed & wholes.keys():
                wholes[one] = wholes[one].then(step)
    return wholes[name]


def _one_by_one(transforms: Sequence[Any]) -> Iterator[Any]:
    for transform in transforms:
        # MMPretrain wraps those of torchvision.
        transform = getattr(transform, 't', transform)
        if type(transform).__name__ == 'Compose':
            yield from _one_by_one(transform.transforms)
        else:
            yield transform


def list_pipelines(
    dataset: Any, outer: Sequence[Any] = ()
) -> Iterator[tuple[Any, list]]:
    """List the innermost data sets, and what is done to their samples.

    Args:
        dataset (Dataset): Of OpenMMLab, perhaps in wrappers, which may have a
            pipeline, too.
        outer (Sequence): Steps that follow those of the data set.

    Yields:
        tuple[Dataset, list]: A data set and the steps of its pipeline.
    """
    # Its own: a wrapper may hand on what the inner one has.
    own = getattr(dataset, '__dict__', {})
    steps = [*list_steps(own.get('pipeline')), *outer]
    inner = own.get('datasets', [own['dataset']] if 'dataset' in own else [])
    if not inner:
        yield dataset, steps
    for part in inner:
        yield from list_pipelines(part, steps)


def read_dataset(
    dataset: Any, name: str = 'image'
) -> tuple[Normalisation, bool]:
    """Read how a data set normalises its images, and in what order they are.

    Args:
        dataset (Dataset): A data set of OpenMMLab, perhaps in wrappers.
        name (str): The input that is meant, see :func:`read_pipeline`.
            Defaults to 'image'.

    Returns:
        tuple[Normalisation, bool]: What its pipeline does, and whether it
        loads RGB images, as MMPretrain's CIFAR does, and not BGR ones.

    Raises:
        ValueError: Its images are not all treated alike.
    """
    found, *others = (
        (read_pipeline(steps, name), _loads_rgb(inner))
        for inner, steps in list_pipelines(dataset)
    )
    if any(not _agree(found, other) for other in others):
        raise ValueError(
            'the data sets of the training set are not normalised alike: '
            'normalise in data_preprocessor, and not in their pipelines'
        )
    return found


def _loads_rgb(dataset: Any) -> bool:
    return 'CIFAR10' in {cls.__name__ for cls in type(dataset).__mro__}


def _agree(
    one: tuple[Normalisation, bool], other: tuple[Normalisation, bool]
) -> bool:
    scale, shift, flips = one[0].turn_into(other[0])
    is_same = bool((scale == 1).all() and (shift == 0).all() and not flips)
    return is_same and one[1] == other[1]


def list_steps(transforms: Any) -> list:
    """List the steps of a pipeline, a list or a single transform."""
    if transforms is None:
        return []
    if isinstance(transforms, (list, tuple)):
        return list(transforms)
    if type(transforms).__name__ == 'Compose':
        return list(transforms.transforms)
    return [transforms]


def _read_nested(transform: Any) -> Normalisation | None:
    """Read a transform made of others, all of which it may not run."""
    branches = map(list_steps, list_steps(transform.transforms))
    if any(read_pipeline(branch) is not RAW for branch in branches):
        raise ValueError(
            f'the pipeline normalises images in a {type(transform).__name__},'
            ' so that it cannot be known how a batch is normalised: normalise '
            'in data_preprocessor'
        )
    return None


def _read_transform(transform: Any) -> Normalisation | None:
    name = type(transform).__name__
    # MMCV's Normalize has an array of the mean, torchvision's a list.
    if name == 'Normalize':
        mean, std = (
            torch.tensor(list(map(float, value))).view(-1, 1, 1)
            for value in (transform.mean, transform.std)
        )
        return Normalisation(mean, std, getattr(transform, 'to_rgb', False))
    if (name == 'NumpyToPIL' and transform.to_rgb) or (
        name == 'PILToNumpy' and transform.to_bgr
    ):
        return Normalisation(RAW.mean, RAW.std, flips=True)
    scales = name == 'ToTensor' and not hasattr(transform, 'keys')
    if name == 'ConvertImageDtype':
        scales = transform.dtype.is_floating_point
    elif name == 'ToDtype':
        scales = transform.scale
    if scales:
        return Normalisation(RAW.mean, RAW.std * 255)
    return None
