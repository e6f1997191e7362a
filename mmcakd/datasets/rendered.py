"""Rendered scenes: textured shapes on clutter, with labels, boxes and masks.

A class is a shape and a texture, for example ``striped_star``. Scene ``i`` of
a split under a seed is a pure function of these three, so that any part of a
set can be rendered anywhere, in any order, and comes out the same.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

RENDERER_VERSION = 1
"""Raised whenever the same arguments would give other pixels."""

SPLITS = ('train', 'val', 'teacher')
"""Disjoint streams of scenes; ``teacher`` is what the shipped teacher saw."""

_SUPERSAMPLING = 4


def _regular(corners: int, inner: float = 1.0) -> np.ndarray:
    """A regular polygon, or a star where ``inner`` is the radius between."""
    angle = np.arange(corners) * 2 * np.pi / corners
    radius = np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _cross(width: float = 0.36) -> np.ndarray:
    a, b = width, (1 - width**2) ** 0.5
    arm = np.array([[a, -a], [b, -a], [b, a]])
    turns = [
        np.array([[c, -s], [s, c]])
        for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
    ]
    return np.concatenate([arm @ turn.T for turn in turns])


def _moon() -> np.ndarray:
    outer = np.linspace(0.2 * np.pi, 1.8 * np.pi, 28)
    tip_x, tip_y = np.cos(outer[0]), np.sin(outer[0])
    centre = 0.45
    radius = np.hypot(tip_x - centre, tip_y)
    tip = np.arctan2(tip_y, tip_x - centre)
    inner = np.linspace(2 * np.pi - tip, tip, 20)[1:-1]
    return np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], 1),
            np.stack(
                [centre + radius * np.cos(inner), radius * np.sin(inner)], 1
            ),
        ]
    ) + (0.15, 0.0)


_OUTLINES = {
    'circle': 0.88 * _regular(36),
    'cross': _cross(),
    'moon': 1.05 * _moon(),
    'square': _regular(4),
    'star': 1.1 * _regular(10, inner=0.45),
    'triangle': _regular(3),
}

SHAPES = tuple(_OUTLINES)
TEXTURES = ('checkered', 'dotted', 'plain', 'striped')
CLASSES = tuple(
    f'{texture}_{shape}' for texture in TEXTURES for shape in SHAPES
)
"""In alphabetical order, the order in which class folders are numbered."""


@dataclass(frozen=True)
class RenderedObject:
    """One object of a scene.

    Attributes:
        label (int): Index into :data:`CLASSES`.
        mask (np.ndarray): Its visible pixels, bool, of shape (H, W).
        box (tuple): ``(x1, y1, x2, y2)`` tight around the visible pixels;
            the far corner is exclusive.
    """

    label: int
    mask: np.ndarray
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """One image and what is on it.

    Attributes:
        image (np.ndarray): RGB, uint8, of shape (H, W, 3).
        label (int): The class of the main (largest) object.
        objects (list[RenderedObject]): The main object first. Objects that
            are hidden altogether are left out.
    """

    image: np.ndarray
    label: int
    objects: list[RenderedObject]


def render_scene(
    index: int, split: str = 'train', seed: int = 0, size: int = 64
) -> Scene:
    """Render one scene.

    Labels take turns (``index % len(CLASSES)``), so that any run of indices is
    balanced. All lengths are fractions of ``size``.

    Args:
        index (int): Number of the scene in its split.
        split (str): One of :data:`SPLITS`. Defaults to 'train'.
        seed (int): Seed of the whole set. Defaults to 0.
        size (int): Height and width in pixels. Defaults to 64.

    Returns:
        Scene: Image, label and objects.

    Examples:
        >>> from mmcakd.datasets.rendered import CLASSES, render_scene
        >>> scene = render_scene(22, split='val')
        >>> CLASSES[scene.label]
        'striped_star'
        >>> scene.image.shape, scene.image.dtype
        ((64, 64, 3), dtype('uint8'))
        >>> scene.objects[0].mask.shape
        (64, 64)
    """
    if split not in SPLITS:
        raise ValueError(f'split is {split!r}; choose one of {SPLITS}')
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    label = index % len(CLASSES)

    canvas = _background(rng, size)
    radius = rng.uniform(0.26, 0.40)
    centre = rng.uniform(0.85 * radius, 1 - 0.85 * radius, 2)
    placed = []
    for _ in range(rng.integers(0, 3)):
        small = rng.uniform(0.09, 0.14)
        angle = rng.uniform(0, 2 * np.pi)
        away = (radius + small) * rng.uniform(0.9, 1.3)
        spot = centre + away * np.array([np.cos(angle), np.sin(angle)])
        placed.append((int(rng.integers(len(CLASSES))), spot, small))
    placed.append((label, centre, radius))

    masks = []
    for kind, spot, extent in placed:
        alpha = _draw_object(rng, canvas, kind, spot, extent)
        covered = alpha >= 0.5
        for mask in masks:
            mask &= ~covered
        masks.append(covered)
    if rng.random() < 0.5:
        covered = _draw_occluder(rng, canvas, centre, radius) >= 0.5
        for mask in masks:
            mask &= ~covered

    canvas += rng.normal(0, 8, canvas.shape).astype(np.float32)
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    objects = [
        RenderedObject(kind, mask, _tight_box(mask))
        for (kind, _, _), mask in zip(placed[::-1], masks[::-1], strict=True)
        if mask.any()
    ]
    return Scene(image, label, objects)


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return (
        int(columns[0]),
        int(rows[0]),
        int(columns[-1]) + 1,
        int(rows[-1]) + 1,
    )


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Coloured clouds with strokes over them, float32 (size, size, 3)."""
    cells = int(rng.integers(2, 6))
    base = rng.uniform(40, 215, 3)
    clouds = np.clip(base + rng.normal(0, 40, (cells, cells, 3)), 0, 255)
    image = Image.fromarray(clouds.astype(np.uint8)).resize(
        (size, size), Image.BICUBIC
    )
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 7)):
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        ends = tuple(rng.uniform(0, size, 4))
        draw.line(ends, fill=colour, width=max(1, round(size / 48)))
    return np.array(image, dtype=np.float32)


def _coverage(outline: np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel an outline in pixels covers, in [0, 1]."""
    stencil = Image.new('L', (size * _SUPERSAMPLING,) * 2)
    corners = (outline * _SUPERSAMPLING).ravel().tolist()
    ImageDraw.Draw(stencil).polygon(corners, fill=255)
    stencil = stencil.reduce(_SUPERSAMPLING)
    return np.asarray(stencil, dtype=np.float32) / 255


def _blend(canvas: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> None:
    canvas += alpha[..., None] * (colour.astype(np.float32) - canvas)


def _turn(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def _two_colours(
    rng: np.random.Generator, behind: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two colours apart from each other, the first apart from ``behind``."""
    while True:
        first, second = rng.uniform(0, 255, (2, 3))
        if (
            np.abs(first - second).mean() > 70
            and np.abs(first - behind).mean() > 50
        ):
            return first, second


def _draw_object(
    rng: np.random.Generator,
    canvas: np.ndarray,
    label: int,
    centre: np.ndarray,
    radius: float,
) -> np.ndarray:
    """Paint an object onto the canvas; return its coverage (H, W)."""
    size = len(canvas)
    texture, shape = divmod(label, len(SHAPES))
    centre, radius = centre * size, radius * size
    outline = _OUTLINES[SHAPES[shape]] @ _turn(rng.uniform(0, 2 * np.pi)).T
    alpha = _coverage(centre + radius * outline, size)

    x, y = np.clip(centre, 0, size - 1).astype(int)
    first, second = _two_colours(rng, canvas[y, x])
    _blend(canvas, alpha, first)
    if TEXTURES[texture] != 'plain':
        ink = _ink(rng, TEXTURES[texture], centre, radius, size)
        _blend(canvas, alpha * ink, second)
    return alpha


def _ink(
    rng: np.random.Generator,
    texture: str,
    centre: np.ndarray,
    radius: float,
    size: int,
) -> np.ndarray:
    """Where a texture's second colour goes, anti-aliased, in [0, 1]."""
    period = rng.uniform(0.42, 0.62) * radius
    c, s = _turn(rng.uniform(0, 2 * np.pi))[:, 0]
    shift = rng.uniform(0, period, 2)
    x = np.arange(size, dtype=np.float32)[None] + 0.5 - centre[0]
    y = np.arange(size, dtype=np.float32)[:, None] + 0.5 - centre[1]
    u = c * x + s * y + shift[0]
    v = c * y - s * x + shift[1]
    if texture == 'dotted':
        u = (u + period / 2) % period - period / 2
        v = (v + period / 2) % period - period / 2
        return np.clip(0.5 + 0.3 * period - np.hypot(u, v), 0, 1)

    def edge(w):
        slope = period / (2 * np.pi)
        return np.clip(slope * np.sin(2 * np.pi / period * w), -0.5, 0.5)

    if texture == 'striped':
        return 0.5 + edge(u)
    return 0.5 + 2 * edge(u) * edge(v)  # checkered


def _draw_occluder(
    rng: np.random.Generator,
    canvas: np.ndarray,
    centre: np.ndarray,
    radius: float,
) -> np.ndarray:
    """Paint a plain bar over the rim of the main object."""
    size = len(canvas)
    angle = rng.uniform(0, 2 * np.pi)
    spot = centre + radius * rng.uniform(0.6, 1.0) * _turn(angle)[:, 0]
    half = radius * np.array([rng.uniform(0.3, 0.6), rng.uniform(0.1, 0.2)])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    corners = spot + corners @ _turn(rng.uniform(0, 2 * np.pi)).T
    alpha = _coverage(corners * size, size)
    _blend(canvas, alpha, rng.uniform(0, 255, 3))
    return alpha
