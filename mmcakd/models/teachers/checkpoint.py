"""Loading weights so that nothing goes wrong in silence."""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Sequence
from pickle import UnpicklingError

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file as load_safetensors
from torch import nn

#: Buffers that a network computes for itself from its own sizes.
DERIVED_BUFFERS = re.compile(
    r'(relative_position_index|relative_coords_table|attn_mask'
    r'|num_batches_tracked)$'
)


def read_checkpoint(path: str) -> dict:
    """Read a checkpoint without running code stored in it.

    Args:
        path (str): File or URL: ``.pth`` with a state dict or a checkpoint
            around one, or ``.safetensors``.

    Returns:
        dict: With ``state_dict`` and ``meta``, and what else the file has.

    Raises:
        FileNotFoundError: No such file.
        RuntimeError: The file is truncated, holds no weights, or carries
            Python code.
    """
    path = str(path)
    try:
        if path.endswith('.safetensors'):
            checkpoint = load_safetensors(path)
        else:
            checkpoint = CheckpointLoader.load_checkpoint(
                path, 'cpu', logger='silent'
            )
    except FileNotFoundError as error:
        raise FileNotFoundError(f'there is no checkpoint at {path}') from error
    except Exception as error:
        detail = str(error).strip().split('\n')[0]
        code = re.search(r'GLOBAL (\S+)', str(error))
        if isinstance(error, UnpicklingError):
            # torch's own first line advises to switch the safety off.
            detail = code[1] if code else 'an unknown format'
        if code or _is_plain_pickle(path):
            problem = (
                'holds more than weights, and loading it could run code from '
                'it, so it was not loaded. If you trust its source, save it '
                'again with weights only: '
                "torch.save({'state_dict': model.state_dict()}, path)"
            )
        elif path.startswith(('http://', 'https://')):
            problem = (
                'could not be downloaded; download it by hand and give its '
                'path'
            )
        else:
            problem = (
                'could not be read as a checkpoint; it may be truncated: '
                'download or copy it again'
            )
        raise RuntimeError(f'{path} {problem} ({detail})') from error
    if not isinstance(checkpoint, dict):
        raise RuntimeError(
            f'{path} holds a {type(checkpoint).__name__}, not a checkpoint'
        )
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = {**checkpoint, 'state_dict': checkpoint[key]}
            break
    else:
        checkpoint = dict(state_dict=checkpoint)
    checkpoint.setdefault('meta', {})
    return checkpoint


def read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """Read only the weights of a checkpoint; see :func:`read_checkpoint`."""
    state_dict = read_checkpoint(path)['state_dict']
    weights = OrderedDict(
        (key, value)
        for key, value in state_dict.items()
        if isinstance(value, torch.Tensor)
    )
    if not weights:
        raise RuntimeError(f'{path} holds no weights')
    # Versions of the modules, by which they rename keys of older releases.
    weights._metadata = getattr(state_dict, '_metadata', OrderedDict())
    return weights


def load_weights(
    model: nn.Module, path: str, ignore: Sequence[str] = ()
) -> None:
    """Load a checkpoint and insist that it is the model's.

    Args:
        model (nn.Module): Filled in place.
        path (str): See :func:`read_state_dict`.
        ignore (Sequence[str]): Regular expressions of keys that may be
            missing or unexpected, e.g. ``'^neck\\.'``.

    Raises:
        RuntimeError: Keys are missing or unexpected, or shapes differ. The
            message shows some of each.
    """
    state_dict = read_state_dict(path)
    misshapen = {}
    try:
        keys = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        # torch reports wrong shapes alone. Set aside, they show the rest.
        misshapen = dict(
            re.findall(r'size mismatch for (\S+): (.+)', str(error))
        )
        for key in misshapen:
            # timm's classifiers name their weights without `model.`.
            state_dict.pop(key, None)
            state_dict.pop(key.removeprefix('model.'), None)
        keys = model.load_state_dict(state_dict, strict=False)
    found = dict(
        missing=[key for key in keys.missing_keys if key not in misshapen],
        unexpected=keys.unexpected_keys,
    )
    found['of another shape'] = list(misshapen)
    found = {
        kind: [
            f'{key}: {misshapen[key]}' if key in misshapen else key
            for key in keys
            if not _tolerated(key, ignore)
        ]
        for kind, keys in found.items()
    }
    if any(found.values()):
        details = '; '.join(
            f'{len(keys)} {kind} ({", ".join(keys[:3])}'
            f'{", ..." if len(keys) > 3 else ""})'
            for kind, keys in found.items()
            if keys
        )
        raise RuntimeError(
            f'{path} does not fit the {type(model).__name__}: weights '
            f'{details}. Is it the checkpoint of this architecture and '
            'number of classes?'
        )
    print_log(f'Loaded {len(state_dict)} weights from {path}', 'current')


def _is_plain_pickle(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, 'rb') as file:
        return file.read(1) == pickle.PROTO


def _tolerated(key: str, ignore: Sequence[str]) -> bool:
    return bool(
        DERIVED_BUFFERS.search(key)
        or any(re.search(pattern, key) for pattern in ignore)
    )
