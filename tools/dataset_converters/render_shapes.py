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
import re
import shutil
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
from mmcakd.utils import Command, read_json, replacing, write_text
from mmcakd.utils.files import remove_leftovers

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
        f'{kind}/{folder}/{index:08d}.png'
        for kind in ('images', 'annotations')
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


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a positive number')
    return number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Render the shapes data set for classifiers, detectors '
        'or segmentors.'
    )
    parser.add_argument('out', type=Path, help='the folder to write')
    parser.add_argument(
        '--layout',
        choices=LAYOUTS,
        default='imagenet',
        help='class folders, boxes and masks of objects, or masks of classes '
        '(default: imagenet)',
    )
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
        help='also draw a sheet with one held-out image of every class, and '
        'the boxes and masks that the layout has',
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
    manifest = describe(args)
    jobs = [('train', i) for i in range(args.num_train)]
    jobs += [('val', i) for i in range(args.num_val)]

    if args.out.exists():
        check_same(args.out, manifest)
        missing = missing_files(args.out, jobs, args.layout)
        if missing:
            print(f'{args.out}: putting back {len(missing)} missing files')
            touched = [
                job
                for job in jobs
                if not missing.isdisjoint(LAYOUTS[args.layout](*job))
            ]
            write_files(args.out, touched, args)
        else:
            print(f'{args.out}: complete already, {len(jobs)} images')
    else:
        write_set(args, manifest, jobs)
        print(
            f'{args.out}: {args.num_train} training and {args.num_val} '
            f'held-out images of {len(CLASSES)} classes'
        )
    if args.preview:
        draw_preview(args.preview, args.layout, args.seed, args.size)
        print(f'{args.preview}: one image of every class')


# --------------------------------------------------------------------- writing


def check_same(out: Path, manifest: dict) -> None:
    """Exit unless ``out`` was written with the same arguments."""
    cure = 'Choose another folder, or delete this one to render it anew.'
    try:
        found = {'layout': 'imagenet'} | read_json(out / 'manifest.json')
    except (OSError, ValueError):
        raise SystemExit(
            f'{out} exists but is not a rendered set: it has no readable '
            f'manifest.json. {cure}'
        ) from None
    asked = {'layout': 'imagenet'} | manifest
    differing = [key for key in asked if found.get(key) != asked[key]]
    if 'layout' in differing:
        differing = ['layout']
    if differing:
        what = '; '.join(
            f'{key} is {found.get(key)}, asked for {asked[key]}'
            for key in differing
        )
        raise SystemExit(f'{out} holds another set: {what}. {cure}')


def missing_files(root: Path, jobs: list[Job], layout: str) -> set[str]:
    files = {file for job in jobs for file in LAYOUTS[layout](*job)}
    return {file for file in files if not (root / file).exists()}


def write_set(
    args: argparse.Namespace, manifest: dict, jobs: list[Job]
) -> None:
    """Write everything beside ``args.out``, then move it into place."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    name = args.out.name
    remove_leftovers(args.out.parent, rf'\.{re.escape(name)}\.(\d+)\.partial')
    partial_set = args.out.with_name(f'.{name}.{os.getpid()}.partial')
    shutil.rmtree(partial_set, ignore_errors=True)
    partial_set.mkdir()
    try:
        write_files(partial_set, jobs, args)
        (partial_set / 'manifest.json').write_text(
            json.dumps(manifest, indent=2) + '\n'
        )
        try:
            partial_set.rename(args.out)
        except OSError:  # somebody else was faster
            check_same(args.out, manifest)
    finally:
        shutil.rmtree(partial_set, ignore_errors=True)


def write_files(root: Path, jobs: list[Job], args: argparse.Namespace) -> None:
    """Write all files that these scenes go into."""
    files = {file for job in jobs for file in LAYOUTS[args.layout](*job)}
    for folder in {(root / file).parent for file in files}:
        folder.mkdir(parents=True, exist_ok=True)
    write = partial(
        write_scene,
        root=root,
        layout=args.layout,
        seed=args.seed,
        size=args.size,
    )
    annotations = {}
    with Pool(args.workers) as pool:
        done = pool.imap(write, jobs, chunksize=64)
        for job, objects in zip(jobs, done, strict=True):
            annotations[job] = objects
    if args.layout == 'coco':
        write_instances(root, annotations, args.size)


def write_scene(
    job: Job, root: Path, layout: str, seed: int, size: int
) -> list[dict]:
    """Write what is a file of this scene alone; return its annotations."""
    split, index = job
    scene = render_scene(index, split, seed, size)
    image, *labels = (root / file for file in LAYOUTS[layout](*job))
    write_png(image, scene.image)
    if layout == 'ade20k':
        write_png(labels[0], index_mask(scene))
    return coco_annotations(scene) if layout == 'coco' else []


def write_png(path: Path, pixels: np.ndarray) -> None:
    half = path.with_suffix('.half')
    Image.fromarray(pixels).save(half, format='PNG', compress_level=1)
    half.rename(path)


def write_instances(
    root: Path, annotations: dict[Job, list[dict]], size: int
) -> None:
    """Write each missing ``instances_*.json``: all its scenes are there."""
    paths = {job: root / coco_files(*job)[1] for job in annotations}
    for path in set(paths.values()):
        if path.exists():
            continue
        images = [
            (job[1], objects)
            for job, objects in annotations.items()
            if paths[job] == path
        ]
        content = coco_instances(images, size)
        write_text(path, json.dumps(content, separators=(',', ':')))


# --------------------------------------------------------------------- preview


def draw_preview(
    path: Path, layout: str, seed: int, size: int, columns: int = 6
) -> None:
    """Draw one held-out image of every class with its labels underneath."""
    zoom = max(1, 128 // size)
    tile, gap, line = zoom * size, 8, 16
    tiles = [
        draw_labels(render_scene(label, 'val', seed, size), layout, zoom)
        for label in range(len(CLASSES))
    ]
    caption = line * max(len(names) for _, names in tiles)
    rows = -(-len(tiles) // columns)
    sheet = Image.new(
        'RGB',
        (columns * (tile + gap) + gap, rows * (tile + gap + caption) + gap),
        'white',
    )
    draw = ImageDraw.Draw(sheet)
    for number, (image, names) in enumerate(tiles):
        row, column = divmod(number, columns)
        x = gap + column * (tile + gap)
        y = gap + row * (tile + gap + caption)
        sheet.paste(image, (x, y))
        for below, (name, colour) in enumerate(names):
            draw.text(
                (x + tile / 2, y + tile + (below + 0.5) * line),
                name,
                fill=colour,
                anchor='mm',
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as written:
        sheet.save(written)


def draw_labels(
    scene: Scene, layout: str, zoom: int
) -> tuple[Image.Image, Caption]:
    """An image with what the layout says of it drawn over, and the names."""
    image, caption, boxes = scene.image.copy(), [], []
    if layout == 'imagenet':
        caption.append((CLASSES[scene.label], 'black'))
    else:
        # In grey, so that all colour is a label's.
        grey = image.mean(2, keepdims=True)
        image[:] = grey
        for label, mask, box in written_labels(scene, layout):
            hue = label * 0.618 % 1  # classes in a row are far apart
            colour = 255 * np.array(colorsys.hsv_to_rgb(hue, 1, 0.8))
            image[mask] = (0.5 + grey[mask] / 510) * colour
            colour = tuple(colour.astype(int).tolist())
            caption.append((CLASSES[label], colour))
            boxes.append((box, colour))
    picture = Image.fromarray(image)
    picture = picture.resize([zoom * s for s in picture.size], Image.NEAREST)
    draw = ImageDraw.Draw(picture)
    for box, colour in boxes:
        if box:
            x, y, width, height = (zoom * side for side in box)
            corners = (x, y, x + width - 1, y + height - 1)
            draw.rectangle(corners, outline=colour)
    return picture, caption


def written_labels(
    scene: Scene, layout: str
) -> Iterable[tuple[int, np.ndarray, list[int] | None]]:
    """Label, mask and, in COCO's layout, box, read from what is written."""
    if layout == 'coco':
        for annotation in coco_annotations(scene):
            mask = decode_mask(annotation['segmentation'])
            yield annotation['category_id'] - 1, mask, annotation['bbox']
    else:
        mask = index_mask(scene)
        for value in np.unique(mask):
            name = PIXEL_CLASSES[value - 1]
            if name != 'background':
                yield CLASSES.index(name), mask == value, None


if __name__ == '__main__':
    with Command():
        main()
