"""Draw which layers of a teacher taught which layers of a student.

Reads the matrices of all mmcakd.RouterLoss in a checkpoint of a run.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from mmcakd.models.losses.router_loss import share_of_pairs
from mmcakd.models.teachers import read_state_dict
from mmcakd.utils import Command, replacing


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='file of a distillation run')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('router.png'),
        help='picture to write (default: %(default)s)',
    )
    return parser.parse_args()


def read_routers(path: str) -> dict[str, torch.Tensor]:
    """Read the weights of the pairs, by the name of the loss.

    Raises:
        SystemExit: The checkpoint has no router.
    """
    state_dict = read_state_dict(path)
    routers = {
        key.split('.')[-2]: share_of_pairs(routes.float())
        for key, routes in state_dict.items()
        if key.startswith('distiller.') and key.endswith('.routes')
    }
    if not routers:
        raise SystemExit(
            f'{path} has no router; it takes the checkpoint (not an exported '
            'student) of a run with a mmcakd.RouterLoss'
        )
    return routers


def draw(routers: dict[str, torch.Tensor]) -> Figure:
    """Draw a heatmap for each router."""
    figure = Figure(figsize=(4.5 * len(routers), 4), layout='constrained')
    panels = figure.subplots(1, len(routers), squeeze=False)[0]
    for panel, (name, weights) in zip(panels, routers.items(), strict=True):
        image = panel.imshow(weights, vmin=0, cmap='viridis')
        rows, columns = weights.shape
        panel.set(
            title=name,
            xlabel='student layer',
            ylabel='teacher layer',
            xticks=range(columns),
            yticks=range(rows),
            xticklabels=range(1, columns + 1),
            yticklabels=range(1, rows + 1),
        )
        bright = weights.max() / 2
        for row in range(rows):
            for column in range(columns):
                weight = weights[row, column]
                panel.text(
                    column,
                    row,
                    f'{weight:.2f}',
                    ha='center',
                    va='center',
                    color='black' if weight > bright else 'white',
                )
        figure.colorbar(image, ax=panel, label='weight of the pair')
    return figure


def main() -> None:
    args = parse_args()
    routers = read_routers(args.checkpoint)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(routers)
    with replacing(args.out) as written:
        figure.savefig(written, dpi=150)
    for name, weights in routers.items():
        place = int(weights.argmax())
        teacher, student = divmod(place, weights.shape[1])
        print(
            f'{name}: most ({weights.max():.2f}) from teacher layer '
            f'{teacher + 1} to student layer {student + 1}'
        )
    print(f'wrote {args.out}')


if __name__ == '__main__':
    with Command():
        main()
