"""Several processes without an accelerator."""

import logging

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log


def prepare_cpu_launcher(cfg: Config) -> None:
    """Make a config with a launcher run on processors.

    MMEngine's ``init_dist`` asks for a CUDA device and its wrapper hands one
    to DDP. Where there is none, start the gloo backend before the Runner
    does, and wrap the model without a device. Nothing is done with an
    accelerator or without a launcher.

    Args:
        cfg (Config): Changed in place if its ``launcher`` is not
            ``'none'``. ``torchrun`` has to have set the environment.
    """
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return
    if cfg.pop('sync_bn', None):
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
