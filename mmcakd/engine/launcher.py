"""Starting a run, in one process or in several."""

import argparse
import logging
import os

import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log

from mmcakd.utils.downstream import revert_sync_bn


def parse_run_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add what every tool that runs a config takes, and parse.

    Args:
        parser (ArgumentParser): With the tool's own arguments.

    Returns:
        Namespace: Has ``cfg_options`` and ``launcher`` besides.
    """
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='override settings of the config: a.b=1 c="[1,2]" d="(x,y)"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed job were started',
    )
    # torch.distributed.launch passes it; torchrun sets the variable instead.
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def check_shares(cfg: Config) -> None:
    """Check that processes train on equal numbers of images.

    Where they do not, the gradients of one process' last step are averaged
    with those of another's next epoch, until the run ends in an error of the
    network.

    Args:
        cfg (Config): Of a training run.

    Raises:
        ValueError: The sampler leaves the shares unequal.
    """
    sampler = (cfg.get('train_dataloader') or {}).get('sampler') or {}
    if (
        cfg.get('launcher', 'none') != 'none'
        and sampler.get('round_up', True) is False
    ):
        raise ValueError(
            'train_dataloader.sampler.round_up=False lets some processes take '
            'more steps than others, whose gradients they need: remove it, '
            'and a few images are repeated instead'
        )


def prepare_cpu_launcher(cfg: Config) -> None:
    """Make a config with a launcher run on processors.

    MMEngine's ``init_dist`` asks for a CUDA device and its wrapper hands one
    to DDP. Where there is none, start the gloo backend before the Runner
    does, and wrap the model without a device. BatchNorm is not synchronised
    there. Nothing is done with an accelerator or without a launcher.

    Args:
        cfg (Config): Changed in place if its ``launcher`` is not
            ``'none'``. ``torchrun`` has to have set the environment.
    """
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return
    named = revert_sync_bn(cfg)
    if cfg.pop('sync_bn', None) or named:
        print_log(
            'Synchronised BatchNorm works on accelerators only; each process '
            'normalises by its own batch',
            'current',
            level=logging.WARNING,
        )
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = {
        **wrapper,
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }
