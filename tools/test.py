"""Evaluate the student of a distillation, or any MMPretrain model.

The teacher is neither built nor loaded: a distillation config stands for its
student, and a distillation checkpoint for the student's weights in it.
"""

import argparse
import os.path as osp
from contextlib import nullcontext

import mmengine
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmcakd.engine.launcher import parse_run_args, prepare_cpu_launcher
from mmcakd.models.teachers import fit_weights, read_checkpoint
from mmcakd.utils import (
    Command,
    read_config,
    replacing,
    student_config,
    student_state_dict,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the run, or a plain one')
    parser.add_argument('checkpoint', help='checkpoint of a run, or exported')
    parser.add_argument('--work-dir', help='where the log goes')
    parser.add_argument(
        '--out', help='file for the metrics (.json), or predictions (.pkl)'
    )
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='evaluate the averaged weights, or the trained ones (default: '
        'the averaged ones where there are any)',
    )
    args = parse_run_args(parser)
    if args.out and not args.out.endswith(('.json', '.pkl')):
        parser.error('--out must end in .json or .pkl')
    return args


def main() -> None:
    args = parse_args()
    weights = student_state_dict(read_checkpoint(args.checkpoint), args.ema)

    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    name = osp.splitext(osp.basename(args.config))[0]
    work_dir = args.work_dir or cfg.get('work_dir')
    cfg = student_config(cfg)
    cfg.work_dir = work_dir or osp.join('work_dirs', name)
    cfg.launcher = args.launcher
    if args.launcher != 'none':
        prepare_cpu_launcher(cfg)

    runner = Runner.from_cfg(cfg)
    model = runner.model
    if is_model_wrapper(model):
        model = model.module
    fit_weights(model, weights, args.checkpoint)
    writes = args.out and is_main_process()
    with replacing(args.out) if writes else nullcontext(args.out) as out:
        if args.out and args.out.endswith('.pkl'):
            runner.test_evaluator.metrics.append(DumpResults(str(out)))
        metrics = runner.test()
        if writes and args.out.endswith('.json'):
            mmengine.dump(metrics, out)


if __name__ == '__main__':
    with Command():
        main()
