"""Train a model by its config: a distillation, or any OpenMMLab one."""

import argparse
import os.path as osp

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mmcakd  # noqa: F401
from mmcakd.engine.hooks.training_set_hook import check_steps
from mmcakd.engine.launcher import (
    check_shares,
    parse_run_args,
    prepare_cpu_launcher,
)
from mmcakd.engine.safeguards import add_safeguards
from mmcakd.engine.schedule import check_schedule, rescale_epochs
from mmcakd.utils import Command, read_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='train config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a value from the '
        'newest one in the work directory that can be read, if there is one',
    )
    parser.add_argument(
        '--epochs',
        type=int,
        help='train for so many epochs, on the same schedule',
    )
    parser.add_argument(
        '--max-hours',
        type=float,
        help='stop after so many hours with a checkpoint to resume from, and '
        'with exit code 0',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train with automatic mixed precision: float16 with loss '
        'scaling on an accelerator, bfloat16 on a CPU',
    )
    parser.add_argument(
        '--no-validate',
        action='store_true',
        help='do not evaluate during training',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the actual batch size over '
        '`auto_scale_lr.base_batch_size` of the config',
    )
    return parse_run_args(parser)


def set_dataloader_defaults(cfg: Config) -> None:
    """Fill in what MMPretrain's configs leave to its train.py."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name) is not None:
            defaults = ConfigDict(
                pin_memory=get_device() != 'cpu',
                persistent_workers=cfg[name].get('num_workers', 0) > 0,
            )
            # Images of detectors differ in size and are stacked later.
            if cfg.get('default_scope', 'mmpretrain') == 'mmpretrain':
                defaults.collate_fn = dict(type='default_collate')
            cfg[name] = ConfigDict(defaults, **cfg[name])


def use_mixed_precision(cfg: Config) -> None:
    # A discriminator, where there is one, runs in float32.
    wrapper = cfg.optim_wrapper.get('student', cfg.optim_wrapper)
    if get_device() == 'cpu':
        wrapper.type = 'mmcakd.BF16OptimWrapper'
    else:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')


def merge_args(cfg: Config, args: argparse.Namespace) -> None:
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)

    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        use_mixed_precision(cfg)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise ValueError(
                '--auto-scale-lr needs the batch size that the learning rate '
                'was meant for: auto_scale_lr = dict(base_batch_size=...)'
            )
        cfg.auto_scale_lr.enable = True
    cfg.merge_from_dict(args.cfg_options)
    if args.epochs is not None:
        rescale_epochs(cfg, args.epochs)
    check_schedule(cfg)
    add_safeguards(cfg)
    if args.max_hours is not None:
        cfg.default_hooks.stop.max_hours = args.max_hours
    set_dataloader_defaults(cfg)


def main(command: Command) -> None:
    args = parse_args()
    cfg = read_config(args.config)
    merge_args(cfg, args)
    if args.launcher != 'none':
        check_shares(cfg)
        prepare_cpu_launcher(cfg)
    build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
    runner = build(cfg)
    command.trains(runner)
    check_steps(runner)
    runner.train()


if __name__ == '__main__':
    with Command() as command:
        main(command)
