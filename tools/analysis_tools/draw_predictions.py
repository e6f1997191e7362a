"""Draw what the detectors or segmentors of tools/downstream.py see.

    draw_predictions.py work_dirs/shapes_coco --images 0 1 2 3

Reads results.json in the work directory and the last checkpoint of each run.
The picture has a column for each image of the evaluation, with the truth on
top and a row for each run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import mmcv
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import import_modules_from_strings

import mmcakd  # noqa: F401
from mmcakd.models.teachers import build_model, load_weights
from mmcakd.utils import (
    Command,
    find_checkpoint,
    read_dumped_config,
    read_json,
    replacing,
)
from mmcakd.utils.config_text import check_readable
from mmcakd.utils.export import without_pretraining


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        'work_dir', type=Path, help='work directory of downstream.py'
    )
    parser.add_argument(
        '--images',
        type=int,
        nargs='+',
        default=[0, 1, 2, 3],
        help='which of the evaluation, from 0 (default: the first four)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of the runs (default: 0)'
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='leave out objects of a lower score (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='picture to write (default: predictions.png in the work\n'
        'directory)',
    )
    args = parser.parse_args()
    args.out = args.out or args.work_dir / 'predictions.png'
    return args


def find_runs(work_dir: Path, seed: int) -> dict[str, Path]:
    """Work directories of the runs with a seed, by their names."""
    results = work_dir / 'results.json'
    if not results.is_file():
        raise SystemExit(
            f'{work_dir} has no results.json: let tools/downstream.py finish'
        )
    runs = read_json(results)['runs']
    found = {
        run['name']: work_dir / run['name'] / f'seed{seed}'
        for run in runs
        if run['seed'] == seed
    }
    if not found:
        seeds = sorted({run['seed'] for run in runs})
        raise SystemExit(f'{work_dir} has no seed {seed}, but {seeds}')
    return found


def read_run_config(run: Path) -> Config:
    """Read the config that MMEngine left in a work directory."""
    found = list(run.glob('*.py'))
    if len(found) != 1:
        raise FileNotFoundError(
            f'{run} holds {len(found)} configs, and one is wanted: let '
            'tools/downstream.py finish'
        )
    cfg = read_dumped_config(found[0])
    needed = ('model', 'val_dataloader', 'custom_imports')
    check_readable({key: cfg.get(key) for key in needed}, found[0])
    if 'custom_imports' in cfg:
        import_modules_from_strings(**cfg.custom_imports)
    cfg.model = without_pretraining(cfg.model)
    return cfg


@torch.no_grad()
def predict(run: Path, dataset: BaseDataset, images: list[int]) -> list:
    """Data samples with the predictions of a run."""
    model = build_model(read_run_config(run).model, run.parent.name)
    load_weights(model, find_checkpoint(run))
    model.eval()
    return [
        model.test_step(pseudo_collate([dataset[index]]))[0]
        for index in images
    ]


class Painter:
    """Draws objects, or the classes of pixels, over an image."""

    def __init__(self, classes: list[str], score_thr: float) -> None:
        self.classes = list(classes)
        self.score_thr = score_thr
        wheel = matplotlib.colormaps['hsv']
        # Neighbours in the list far from each other on the wheel.
        hues = np.arange(len(classes)) * 0.618 % 1
        self.colours = wheel(hues)[:, :3]

    def draw(self, axes: Axes, sample, prefix: str) -> None:
        """Draw the truth (``prefix='gt'``) or predictions (``'pred'``)."""
        axes.imshow(mmcv.imread(sample.img_path, channel_order='rgb'))
        axes.set(xticks=[], yticks=[])
        if f'{prefix}_sem_seg' in sample:
            (classes,) = sample.get(f'{prefix}_sem_seg').data
            self._draw_pixels(axes, classes.numpy())
        else:
            self._draw_objects(axes, sample.get(f'{prefix}_instances'))

    def _draw_pixels(self, axes: Axes, classes: np.ndarray) -> None:
        # 255 stands for what does not count.
        known = classes < len(self.classes)
        if 'background' in self.classes:
            known &= classes != self.classes.index('background')
        overlay = np.zeros((*classes.shape, 4))
        overlay[known, :3] = self.colours[classes[known]]
        overlay[known, 3] = 0.6
        axes.imshow(overlay)

    def _draw_objects(self, axes: Axes, objects) -> None:
        if 'scores' in objects:
            objects = objects[objects.scores >= self.score_thr]
        boxes = getattr(objects.bboxes, 'tensor', objects.bboxes)
        lowest = 0.06 * axes.get_ylim()[0]  # for a name to be seen
        for index, (box, label) in enumerate(
            zip(boxes.tolist(), objects.labels.tolist(), strict=True)
        ):
            x, y, right, bottom = box
            colour = self.colours[label]
            frame = Rectangle(
                (x, y), right - x, bottom - y, fill=False, color=colour
            )
            axes.add_patch(frame)
            axes.text(
                x,
                max(y, lowest),
                self.classes[label],
                fontsize=6,
                color='white',
                verticalalignment='bottom',
                bbox=dict(facecolor=colour, edgecolor='none', pad=0.5),
                clip_on=True,
            )
            if 'masks' in objects:
                masks = getattr(objects.masks, 'masks', objects.masks)
                axes.contour(np.asarray(masks[index]), [0.5], colors=[colour])


def draw(rows: Sequence[tuple[str, list, str]], painter: Painter) -> Figure:
    """Draw rows of data samples, each with its label and what to draw."""
    columns = len(rows[0][1])
    figure = Figure(
        figsize=(2.4 * columns, 2.4 * len(rows)), layout='constrained'
    )
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, samples, prefix) in zip(grid, rows, strict=True):
        line[0].set_ylabel(label)
        for axes, sample in zip(line, samples, strict=True):
            painter.draw(axes, sample, prefix)
    return figure


def main() -> None:
    args = parse_args()
    runs = find_runs(args.work_dir, args.seed)
    cfg = read_run_config(next(iter(runs.values())))
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    missing = [i for i in args.images if not 0 <= i < len(dataset)]
    if missing:
        raise SystemExit(
            f'--images {missing}: the evaluation has {len(dataset)}'
        )
    rows = [
        (name, predict(run, dataset, args.images), 'pred')
        for name, run in runs.items()
    ]
    # Predictions keep the truth of their image.
    rows.insert(0, ('truth', rows[0][1], 'gt'))
    painter = Painter(dataset.metainfo['classes'], args.score_thr)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(rows, painter)
    with replacing(args.out) as written:
        figure.savefig(written, dpi=110)
    print(f'{args.out}: the truth, {", ".join(runs)}')


if __name__ == '__main__':
    with Command():
        main()
