"""What images may suffer at test time."""

import torch


def add_noise(
    images: torch.Tensor, std: float, generator: torch.Generator
) -> torch.Tensor:
    """Add Gaussian noise to every value.

    Args:
        images (Tensor): ``(N, C, H, W)`` in 0 to 255.
        std (float): Standard deviation, in the same units.
        generator (Generator): Source of the noise.

    Returns:
        Tensor: Float images, clipped to 0 to 255.

    Examples:
        >>> import torch
        >>> from mmcakd.evaluation import add_noise
        >>> images = torch.full((2, 3, 64, 64), 128)
        >>> noisy = add_noise(images, 20., torch.Generator().manual_seed(0))
        >>> f'{noisy.std():.0f}'
        '20'
    """
    noise = torch.randn(images.shape, generator=generator)
    return (images + std * noise).clamp(0, 255)


def occlude(
    images: torch.Tensor, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Cover a part of each image by grey.

    The part has the proportions of the image and lies anywhere inside it.

    Args:
        images (Tensor): ``(N, C, H, W)`` in 0 to 255.
        share (float): Covered share of the area, 0 to 1.
        generator (Generator): Source of the places.

    Returns:
        Tensor: Float images.

    Raises:
        ValueError: The share is not between 0 and 1.

    Examples:
        >>> import torch
        >>> from mmcakd.evaluation import occlude
        >>> images = torch.zeros(2, 3, 20, 40)
        >>> covered = occlude(images, 0.25, torch.Generator().manual_seed(0))
        >>> (covered == 127.5).float().mean()
        tensor(0.2500)
    """
    if not 0 <= share <= 1:
        raise ValueError(f'share must be between 0 and 1, got {share}')
    images = images.float().clone()
    sides = [round(share**0.5 * side) for side in images.shape[2:]]
    for image in images:
        top, left = (
            int(torch.randint(whole - side + 1, (), generator=generator))
            for whole, side in zip(image.shape[1:], sides, strict=True)
        )
        image[:, top : top + sides[0], left : left + sides[1]] = 127.5
    return images
