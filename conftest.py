"""What every test, and every example in a docstring, starts from."""

import mmcakd  # isort: skip  (makes MMRazor and torchvision importable)
import mmcakd.engine  # isort: skip  (which register their classes, once,
import mmcakd.models  # isort: skip  (also where one file is tested)

import logging
import random
from functools import cache
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmengine.config import utils as config_utils
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

assert mmcakd.__version__


@pytest.fixture(scope='session', autouse=True)
def lists_read_once():
    """Read the list of a zoo's models once, not for each of its configs."""
    with patch.object(config_utils, 'load', cache(config_utils.load)):
        yield


@pytest.fixture(autouse=True)
def clean_slate():
    """Seed every test alike and drop what MMEngine keeps between runs."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer):
        manager._instance_dict.clear()


@pytest.fixture(autouse=True)
def without_log(request):
    """Keep the log out of what an example is seen to print."""
    if isinstance(request.node, pytest.DoctestItem):
        logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
