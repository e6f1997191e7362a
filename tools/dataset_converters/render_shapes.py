"""Render the shapes data set for classifiers, detectors or segmentors.

    --layout imagenet (default)
        OUT/train/striped_star/000022.png
        OUT/val/...
    --layout coco
        OUT/train2017/000000000022.png
        OUT/val2017/...
        OUT/annotations/instances_train2017.json
        OUT/annotations/instances_val2017.json
    --layout ade20k
        OUT/images/training/00000022.png
        OUT/images/validation/...
        OUT/annotations/training/00000022.png
        OUT/annotations/validation/...

Each has an OUT/manifest.json. The images are the same in all of them. Running
it again reuses a complete set and puts back missing files. A folder that holds
anything else is left alone.
"""

import argparse
import colorsys
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mmcakd.datasets import (
    CLASSES,
    MIN_VISIBLE,
    PIXEL_CLASSES,
    Scene,
    coco_annotations,
    coco_file_name,
    coco_instances,
    decode_mask,
    index_mask,
    render_scene,
)
from mmcakd.datasets.rendered import RENDERER_VERSION

Job = tuple[str, int]
Caption = list[tuple[str, str | tuple[int, int, int]]]


# --------------------------------------------------------------------- layouts
# The files that a scene goes into, its image first.


def imagenet_files(split: str, index: int) -> list[str]:
    return [f'{split}/{CLASSES[index % len(CLASSES)]}/{index:06d}.png']


def coco_files(split: str, index: int) -> list[str]:
    return [
        f'{split}2017/{coco_file_name(index)}',
        f'annotations/instances_{split}2017.json',
    ]


def ade20k_files(split: str, index: int) -> list[str]:
    folder = {'train': 'training', 'val': 'validation'}[split]
    return [
        f'{kind}/{folder}/{index:08d}.png' for kind in ('images', 'annotations')
    ]


LAYOUTS = dict(imagenet=imagenet_files, coco=coco_files, ade20k=ade20k_files)


def describe(args: argparse.Namespace) -> dict:
    """What the manifest says of a set."""
    manifest = {
        'renderer_version': RENDERER_VERSION,
        'num_train': args.num_train,
        'num_val': args.num_val,
        'seed': args.seed,
        'size': args.size,
        'classes': list(CLASSES),
    }
    # The manifest of an ImageNet layout does not name it: older ones do not.
    if args.layout == 'coco':
        manifest |= {'layout': 'coco', 'min_visible': MIN_VISIBLE}
    elif args.layout == 'ade20k':
        manifest |= {'layout': 'ade20k', 'classes': list(PIXEL_CLASSES)}
    return manifest


# --------------------------------------------------------------------- writing


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a positive number')
    return number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Render the shapes data set into class folders.'
    )
    parser.add_argument('out', type=Path, help='the folder to write')
    parser.add_argument('--num-train', type=positive, default=1200)
    parser.add_argument('--num-val', type=positive, default=2400)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--size', type=positive, default=64, help='height and width in pixels'
    )
    parser.add_argument('--workers', type=positive, default=os.cpu_count())
    parser.add_argument(
        '--preview',
        type=Path,
        metavar='PNG',
        help='also draw a sheet with one held-out image of every class',
    )
    args = parser.parse_args()
    if args.seed < 0:
        parser.error('--seed must not be negative')
    if args.size < 16:
        parser.error(
            '--size must be at least 16: nothing can be told apart below'
        )
    return args


def main() -> None:
    args = parse_args()
    manifest = {
        'renderer_version': RENDERER_VERSION,
        'num_train': args.num_train,
        'num_val': args.num_val,
        'seed': args.seed,
        'size': args.size,
        'classes': list(CLASSES),
    }
    jobs = [('train', i) for i in range(args.num_train)]
    jobs += [('val', i) for i in range(args.num_val)]

    if args.out.exists():
        check_same(args.out, manifest)
        missing = [
            job for job in jobs if not image_path(args.out, job).exists()
        ]
        if missing:
            print(f'{args.out}: putting back {len(missing)} missing images')
            write_images(args.out, missing, args)
        else:
            print(f'{args.out}: complete already, {len(jobs)} images')
    else:
        write_set(args, manifest, jobs)
        print(
            f'{args.out}: {args.num_train} training and {args.num_val} '
            f'held-out images of {len(CLASSES)} classes'
        )
    if args.preview:
        draw_preview(args.preview, args.seed, args.size)
        print(f'{args.preview}: one image of every class')


def check_same(out: Path, manifest: dict) -> None:
    """Exit unless ``out`` was written with the same arguments."""
    cure = 'Choose another folder, or delete this one to render it anew.'
    try:
        found = json.loads((out / 'manifest.json').read_text())
    except (OSError, ValueError):
        raise SystemExit(
            f'{out} exists but is not a rendered set: it has no readable '
            f'manifest.json. {cure}'
        ) from None
    differing = [
        f'{key} is {found.get(key)}, asked for {value}'
        for key, value in manifest.items()
        if found.get(key) != value
    ]
    if differing:
        raise SystemExit(
            f'{out} holds another set: {"; ".join(differing)}. {cure}'
        )


def write_set(
    args: argparse.Namespace, manifest: dict, jobs: list[Job]
) -> None:
    """Write everything beside ``args.out``, then move it into place."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial_set = Path(
        tempfile.mkdtemp(
            prefix=f'.{args.out.name}.', suffix='.partial', dir=args.out.parent
        )
    )
    try:
        partial_set.chmod(0o755)
        write_images(partial_set, jobs, args)
        (partial_set / 'manifest.json').write_text(
            json.dumps(manifest, indent=2) + '\n'
        )
        try:
            partial_set.rename(args.out)
        except OSError:  # somebody else was faster
            check_same(args.out, manifest)
    finally:
        shutil.rmtree(partial_set, ignore_errors=True)


def write_images(
    root: Path, jobs: list[Job], args: argparse.Namespace
) -> None:
    for folder in {image_path(root, job).parent for job in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    write = partial(write_image, root=root, seed=args.seed, size=args.size)
    with Pool(args.workers) as pool:
        for _ in pool.imap_unordered(write, jobs, chunksize=64):
            pass


def write_image(job: Job, root: Path, seed: int, size: int) -> None:
    split, index = job
    scene = render_scene(index, split, seed, size)
    path = image_path(root, job)
    half = path.with_suffix('.half')
    Image.fromarray(scene.image).save(half, format='PNG', compress_level=1)
    half.rename(path)


def image_path(root: Path, job: Job) -> Path:
    split, index = job
    return root / split / CLASSES[index % len(CLASSES)] / f'{index:06d}.png'


def draw_preview(path: Path, seed: int, size: int, columns: int = 6) -> None:
    """Draw one held-out image of every class with its name underneath."""
    zoom = max(1, 128 // size)
    tile, gap, caption = zoom * size, 8, 16
    rows = -(-len(CLASSES) // columns)
    sheet = Image.new(
        'RGB',
        (columns * (tile + gap) + gap, rows * (tile + gap + caption) + gap),
        'white',
    )
    draw = ImageDraw.Draw(sheet)
    for label, name in enumerate(CLASSES):
        row, column = divmod(label, columns)
        x = gap + column * (tile + gap)
        y = gap + row * (tile + gap + caption)
        image = Image.fromarray(render_scene(label, 'val', seed, size).image)
        sheet.paste(image.resize((tile, tile), Image.NEAREST), (x, y))
        draw.text(
            (x + tile / 2, y + tile + caption / 2),
            name,
            fill='black',
            anchor='mm',
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


if __name__ == '__main__':
    main()
