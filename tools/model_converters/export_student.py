"""Write the student of a distillation as a plain MMPretrain checkpoint.

A config of the same name is written beside it; both are loaded in MMPretrain
before this reports success.
"""

import argparse

from mmcakd.utils import Command, export_student, read_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='checkpoint file, or work directory')
    parser.add_argument(
        'out',
        nargs='?',
        help='file to write (default: student.pth in the work directory, or '
        'CHECKPOINT_student.pth beside the checkpoint)',
    )
    parser.add_argument(
        '--config',
        help='config of the run (default: the one in the checkpoint)',
    )
    parser.add_argument(
        '--which',
        default='last',
        help='which checkpoint of a work directory: last, best, or the metric '
        'it is the best by, e.g. accuracy/top1 (default: last)',
    )
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='take the averaged weights, or the trained ones (default: the '
        'averaged ones where there are any)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = read_config(args.config) if args.config else None
    out = export_student(args.source, args.out, cfg, args.ema, args.which)
    print(
        f'{out} and {out.with_suffix(".py")} load in MMPretrain with no '
        'missing and no unexpected key'
    )


if __name__ == '__main__':
    with Command():
        main()
