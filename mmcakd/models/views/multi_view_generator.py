"""Another view of a batch, made on the device."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import Fraction, NonNegative, PositiveInt
from mmcakd.registry import MODELS

from ..teachers.normalisation import RAW, Normalisation, read_normalisation


@MODELS.register_module()
class MultiViewGenerator(nn.Module):
    """Transform some of the images of a batch, at random.

    Each image is transformed with probability ``prob``, by all transforms
    that are switched on, in this order:

    - colour jitter: brightness, contrast and saturation are multiplied by a
      factor drawn from ``[1 - x, 1 + x]``, as by torchvision's
      ``ColorJitter``, on the image without its normalisation;
    - a crop of the image's aspect ratio, resized to the image's size, and a
      rotation about the centre, in one bilinear resampling;
    - masking: of the squares of a grid, a part is replaced.

    What lies outside of the image and what is masked becomes zero, which is
    the mean colour of normalised images.

    Numbers are drawn from torch's generator of the batch's device. The batch
    itself is not changed.

    Source: `Cross-Architecture Knowledge Distillation
    <https://arxiv.org/abs/2207.05273>`_, section 3.3, which names colour
    jitter, random crop, rotation and patch masking with a probability of
    0.5. Their ranges and order are ours. Crop and rotation are off by
    default: they move what the student sees away from the places of what the
    teacher sees.

    Args:
        prob (float): Defaults to 0.5.
        brightness (float): Defaults to 0.4.
        contrast (float): Defaults to 0.4.
        saturation (float): Defaults to 0.4.
        crop_scale (tuple[float, float]): Least and largest area of the crop,
            as parts of the image's. Defaults to (1, 1), no crop.
        max_rotation (float): Largest angle, to either side, in degrees.
            Defaults to 0.
        mask_ratio (float): Part of the squares that is masked. Defaults to
            0.25.
        mask_size (int): Side of a square in pixels. Defaults to 16.

    Raises:
        ValueError: A setting out of its range, or squares that do not fit
            the images.

    Examples:
        >>> import torch
        >>> from mmcakd.models.views import MultiViewGenerator
        >>> images = torch.ones(4, 3, 64, 96)
        >>> views = MultiViewGenerator(prob=1., mask_ratio=0.25)(images)
        >>> views.shape
        torch.Size([4, 3, 64, 96])
        >>> (views[0] == 0).float().mean()  # 6 of 24 squares
        tensor(0.2500)
    """

    def __init__(
        self,
        prob: Fraction = 0.5,
        brightness: Fraction = 0.4,
        contrast: Fraction = 0.4,
        saturation: Fraction = 0.4,
        crop_scale: tuple[Fraction, Fraction] = (1.0, 1.0),
        max_rotation: NonNegative = 0.0,
        mask_ratio: Fraction = 0.25,
        mask_size: PositiveInt = 16,
    ) -> None:
        super().__init__()
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(
                f'crop_scale must be (least, largest) in (0, 1], got '
                f'{crop_scale}'
            )
        self.prob = prob
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.crop_scale = tuple(crop_scale)
        self.max_rotation = max_rotation
        self.mask_ratio = mask_ratio
        self.mask_size = mask_size
        # Of images that are not normalised.
        self._set_colours(torch.zeros(3, 1, 1), torch.ones(3, 1, 1), True)

    @property
    def is_geometric(self) -> bool:
        """Whether what is in an image may move."""
        return self.crop_scale[0] < 1 or self.max_rotation > 0

    def adapt_to(
        self, preprocessor: nn.Module, pipeline: Normalisation = RAW
    ) -> None:
        """Learn how the batches are normalised.

        Args:
            preprocessor (nn.Module): The preprocessor that makes them.
            pipeline (Normalisation): What was done before to the images,
                whose values went up to 255. Defaults to nothing.
        """
        whole = pipeline.then(read_normalisation(preprocessor))
        mean, std = (
            value.expand(3, 1, 1).to(self.mean.device)
            for value in (whole.mean, whole.std)
        )
        self._set_colours(mean, std, whole.flips)

    def check_image_size(self, height: int, width: int) -> None:
        """Check that something of an image is masked, but not all of it.

        Raises:
            ValueError: A square is larger than the image, or there are so few
                of them that none or all of them are masked.
        """
        count = math.prod(self._squares(height, width))
        masked = round(self.mask_ratio * count)
        too_large = self.mask_size > min(height, width)
        if 0 < self.mask_ratio < 1 and (too_large or not 0 < masked < count):
            raise ValueError(
                f'squares of mask_size={self.mask_size} are too large for '
                f'images of {height} x {width}: mask_ratio={self.mask_ratio} '
                f'of {count} squares masks {masked}; set a smaller mask_size, '
                'or mask_ratio=0 for no masking'
            )

    def _squares(self, height: int, width: int) -> tuple[int, int]:
        """Count the rows and columns of squares on an image."""
        return tuple(
            math.ceil(side / self.mask_size) for side in (height, width)
        )

    def _set_colours(
        self, mean: torch.Tensor, std: torch.Tensor, is_rgb: bool
    ) -> None:
        luma = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
        # Not saved: they follow from the config.
        for name, value in dict(
            mean=mean.clone(),
            std=std.clone(),
            luma=(luma if is_rgb else luma.flip(0)).to(mean.device),
        ).items():
            self.register_buffer(name, value, persistent=False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Make views.

        Args:
            images (Tensor): Normalised images ``(N, 3, H, W)``.

        Returns:
            Tensor: The same shape.

        Raises:
            ValueError: See :meth:`check_image_size`.
        """
        self.check_image_size(*images.shape[2:])
        chosen = _uniform(images, 0, 1) < self.prob
        with torch.autocast(images.device.type, enabled=False):
            views = self._mask(self._move(self._jitter(images)))
        return torch.where(chosen, views, images)

    def _jitter(self, images: torch.Tensor) -> torch.Tensor:
        if not (self.brightness or self.contrast or self.saturation):
            return images
        pixels = (images * self.std + self.mean) / 255
        for change, grey_of in (
            (self.brightness, torch.zeros_like),
            (self.contrast, self._mean_grey),
            (self.saturation, self._grey),
        ):
            if change:
                factor = _uniform(images, 1 - change, 1 + change)
                grey = grey_of(pixels)
                pixels = (grey + factor * (pixels - grey)).clamp(0, 1)
        return (pixels * 255 - self.mean) / self.std

    def _grey(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels * self.luma).sum(1, keepdim=True)

    def _mean_grey(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._grey(pixels).mean((2, 3), keepdim=True)

    def _move(self, images: torch.Tensor) -> torch.Tensor:
        if not self.is_geometric:
            return images
        height, width = images.shape[2:]
        side = _uniform(images, *self.crop_scale).flatten().sqrt()
        # Centres of crops that stay inside, in units of half an image.
        room = 1 - side
        x, y = (room * _uniform(images, -1, 1).flatten() for _ in range(2))
        limit = math.radians(self.max_rotation)
        angle = _uniform(images, -limit, limit).flatten()
        cos, sin = angle.cos(), angle.sin()
        # In the same units, in which a pixel is no square.
        to_x, to_y = -sin * height / width, sin * width / height
        theta = torch.stack(
            [
                torch.stack([cos * side, to_x * side, cos * x + to_x * y], 1),
                torch.stack([to_y * side, cos * side, to_y * x + cos * y], 1),
            ],
            dim=1,
        )
        grid = F.affine_grid(theta, images.shape, align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    def _mask(self, images: torch.Tensor) -> torch.Tensor:
        if not self.mask_ratio:
            return images
        height, width = images.shape[2:]
        rows, columns = self._squares(height, width)
        order = torch.rand(
            len(images), rows * columns, device=images.device
        ).argsort(1)
        masked = order < round(self.mask_ratio * rows * columns)
        masked = (
            masked.view(-1, 1, rows, columns)
            .repeat_interleave(self.mask_size, 2)
            .repeat_interleave(self.mask_size, 3)
        )
        return images.masked_fill(masked[..., :height, :width], 0)


def _uniform(images: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Draw a number for each image."""
    return torch.empty(
        (len(images), 1, 1, 1), dtype=images.dtype, device=images.device
    ).uniform_(low, high)
