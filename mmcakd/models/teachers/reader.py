"""Reading checkpoints: nothing in them is run, and what is wrong is said.

Every path that opens a checkpoint ends here: a teacher's weights, ``--resume``
and ``load_from``, ``init_cfg=dict(type='Pretrained')``, testing, export and
the tools. MMEngine's own routes do, since :mod:`mmcakd.compat` registers
:func:`read_local` and :func:`read_url` with its ``CheckpointLoader``.
"""

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file as load_safetensors

#: Where the weights of a checkpoint are. First come, first served.
_WEIGHTS = ('state_dict', 'model', 'state_dict_ema', 'model_ema')

_SAVE_WEIGHTS = "torch.save({'state_dict': model.state_dict()}, path)"
_COPY_AGAIN = 'copy or download it again'

#: How torch's format before 1.6 begins: a magic number, pickled.
_OLD_FORMAT = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'

#: What else a file may be, by its first bytes.
_OTHER_FORMATS = {
    b'version https://git-lfs': (
        "the pointer of Git LFS to a file: fetch it with 'git lfs pull'"
    ),
    b'\xff\xd8\xff': 'a JPEG image',
    b'\x89PNG': 'a PNG image',
    b'\x89HDF': 'an HDF5 file',
    b'\x1f\x8b': 'compressed by gzip: unpack it',
    b'%PDF': 'a PDF document',
    b'<': 'a page of HTML or XML: what was downloaded is an answer in words',
    b'{': 'text, perhaps JSON',
    b'[': 'text, perhaps JSON',
}


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict:
    """Read a checkpoint without running code stored in it.

    Args:
        path (str | Path): File or URL: ``.pth`` with a state dict or a
            checkpoint around one, or ``.safetensors``.
        mmap (bool): Whether to leave the tensors of a local file on the disk
            until they are read. For those that are copied at once: the file
            must not be written to while they are used. Defaults to False.

    Returns:
        dict: With ``state_dict`` and ``meta``, and what else the file has.

    Raises:
        FileNotFoundError: No such file.
        RuntimeError: The file is truncated or damaged, holds no weights, is
            of another kind, or carries Python code.
    """
    path = str(path)
    if path.startswith(('http://', 'https://')):
        checkpoint = read_url(path)
    elif re.match(r'[\w.+-]{2,}:', path):
        checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu', 'silent')
    else:
        checkpoint = read_local(path, 'cpu', mmap)
    if 'state_dict' not in checkpoint:
        checkpoint = dict(state_dict=checkpoint)
    checkpoint.setdefault('meta', {})
    return checkpoint


def read_state_dict(path: str | Path) -> 'OrderedDict[str, torch.Tensor]':
    """Read only the weights of a checkpoint; see :func:`read_checkpoint`.

    They lie on the disk until they are used: copy what is to stay.
    """
    state_dict = read_checkpoint(path, mmap=True)['state_dict']
    weights = OrderedDict(
        (key, value)
        for key, value in state_dict.items()
        if isinstance(value, torch.Tensor)
    )
    # Versions of the modules, by which they rename keys of older releases.
    weights._metadata = getattr(state_dict, '_metadata', OrderedDict())
    return weights


def read_local(
    filename: str, map_location: Any = 'cpu', mmap: bool = False
) -> dict:
    """Read a file, for MMEngine's ``CheckpointLoader`` too.

    Args:
        filename (str): The file.
        map_location: See :func:`torch.load`. Defaults to the CPU.
        mmap (bool): See :func:`read_checkpoint`. Defaults to False.

    Returns:
        dict: A state dict, or a checkpoint around one in ``state_dict``.

    Raises:
        FileNotFoundError: No such file.
        RuntimeError: See :func:`read_checkpoint`.
    """
    path = os.path.expanduser(filename)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f'there is no checkpoint at {path}: check the path'
        )
    if os.path.isdir(path):
        raise RuntimeError(
            f'{path} is a folder, not a checkpoint: name a file in it'
        )
    try:
        with open(path, 'rb') as file:
            start = file.read(64)
    except OSError as error:
        raise RuntimeError(
            f'{path} could not be read as a checkpoint: {error.strerror}'
        ) from error
    if not start:
        raise _unreadable(path, 'it is empty, truncated by a copy that failed')
    if not start.strip(b'\0'):
        raise _unreadable(
            path, 'it begins with zeros, as a write that was cut short leaves'
        )
    if path.endswith('.safetensors'):
        content = _read_safetensors(path, map_location)
    else:
        content = _read_torch(path, start, map_location, mmap)
    return _checked(content, path)


def read_url(
    filename: str,
    map_location: Any = 'cpu',
    model_dir: str | None = None,
    progress: bool = True,
) -> dict:
    """Download a file, unless it was before, and read it.

    It is kept where :mod:`torch.hub` keeps its own. :func:`torch.hub` would
    run code that is in it.

    Args:
        filename (str): Its URL.
        map_location: See :func:`torch.load`. Defaults to the CPU.
        model_dir (str, optional): The folder it is kept in.
        progress (bool): Whether to show a progress bar. Defaults to True.

    Returns:
        dict: See :func:`read_local`.

    Raises:
        RuntimeError: It could not be downloaded; and see
            :func:`read_checkpoint`.
    """
    folder = Path(
        model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints')
    )
    kept = folder / os.path.basename(urlparse(filename).path)

    def download() -> None:
        if kept.exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                filename, str(kept), progress=progress
            )
        except (OSError, ValueError) as error:
            detail = str(error).strip().split('\n')[0]
            raise RuntimeError(
                f'{filename} could not be downloaded ({detail}): download it '
                'by hand and give its path'
            ) from error

    # One process of a node first, as others would write the same file.
    rank, _ = get_dist_info()
    try:
        if rank == 0:
            download()
    finally:
        barrier()
    download()
    try:
        return read_local(str(kept), map_location)
    except RuntimeError as error:
        raise RuntimeError(
            f'{error} (it was downloaded from {filename}; remove it to '
            'download it again)'
        ) from error


def check_resumable(checkpoint: dict, path: str | Path) -> None:
    """Insist that a training can go on from a checkpoint.

    Args:
        checkpoint (dict): See :func:`read_checkpoint`.
        path (str | Path): Its file, for the message.

    Raises:
        RuntimeError: It holds weights alone, or lacks something else. The
            message names it.
    """
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    missing = [
        f'meta.{key}'
        for key in ('epoch', 'iter')
        if type(meta.get(key)) is not int
    ]
    missing += [
        key
        for key in ('optimizer', 'message_hub')
        if not isinstance(checkpoint.get(key), dict)
    ]
    if missing:
        raise RuntimeError(
            f'{path} is no checkpoint of a training that could be resumed: '
            f'it has no {", no ".join(missing)}. Resume from an epoch_*.pth '
            'or iter_*.pth of the run, or start from its weights with '
            '--cfg-options load_from=FILE'
        )


def _unreadable(
    path: str, cause: str, cure: str = _COPY_AGAIN
) -> RuntimeError:
    return RuntimeError(
        f'{path} could not be read as a checkpoint: {cause}; {cure}'
    )


def _read_safetensors(path: str, map_location: Any) -> dict:
    named = isinstance(map_location, (str, torch.device))
    try:
        return load_safetensors(path, str(map_location) if named else 'cpu')
    except Exception:
        raise _unreadable(
            path, 'it is no file of safetensors, or it is truncated'
        ) from None


def _read_torch(path: str, start: bytes, map_location: Any, mmap: bool) -> Any:
    is_zip = start.startswith(b'PK')
    if is_zip:
        _check_zip(path)
    elif start.startswith(pickle.PROTO):
        if not start.startswith(_OLD_FORMAT[: len(start)]):
            raise _with_code(path)
    else:
        kinds = (
            kind
            for begin, kind in _OTHER_FORMATS.items()
            if start.lstrip().startswith(begin)
        )
        kind = next(kinds, 'of a format that torch.save does not write')
        raise _unreadable(
            path, f'it is {kind}', 'name the file that has the weights'
        )
    try:
        return torch.load(
            path,
            map_location or 'cpu',
            weights_only=True,
            mmap=mmap and is_zip,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # torch's own messages advise to switch the safety off; they are not
        # shown as a cause either.
        if code := re.search(r'GLOBAL (\S+)', str(error)):
            raise _with_code(path, code[1]) from None
        if is_zip and isinstance(error, pickle.UnpicklingError):
            raise _with_code(path) from None
        raise _unreadable(path, 'it is truncated or damaged') from None


def _with_code(path: str, code: str = 'pickled objects') -> RuntimeError:
    code = ''.join(c if c.isprintable() else '?' for c in code[:80])
    return RuntimeError(
        f'{path} holds more than weights ({code}), and loading it could run '
        'code from it, so it was not loaded. If you trust its source, save it '
        f'again with weights only: {_SAVE_WEIGHTS}'
    )


def _check_zip(path: str) -> None:
    """Check what torch does not: the sums that are stored with the data."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            for record in records:
                # torch.save can be told to leave the sums out.
                if record.CRC:
                    with archive.open(record) as data:
                        while data.read(2**20):
                            pass
    except Exception:
        raise _unreadable(path, 'it is truncated or damaged') from None
    names = {record.filename.partition('/')[2] for record in records}
    if 'constants.pkl' in names:
        cure = f'save its weights alone: {_SAVE_WEIGHTS}'
        raise _unreadable(path, 'it is a program of TorchScript', cure)
    if 'data.pkl' not in names:
        raise _unreadable(
            path,
            'it is a zip archive, but not one of torch.save',
            'name the file that has the weights',
        )


def _checked(content: Any, path: str) -> dict:
    """See that there are weights, and where MMEngine looks for them."""
    if not isinstance(content, dict):
        raise RuntimeError(
            f'{path} holds a {type(content).__name__}, not a checkpoint: save '
            f'a state dict, {_SAVE_WEIGHTS}'
        )
    named = [key for key in _WEIGHTS if key in content]
    key = next((key for key in named if _count_weights(content[key])), None)
    if key is None:
        nested = dict(_find_state_dicts(content))
        direct = 0 if named else _count_weights(content)
        if direct <= max(nested.values(), default=0):
            raise _without_weights(path, list(nested))
        return content
    for name, value in content[key].items():
        _check_entry(name, value, path)
    content['state_dict'] = content[key]
    if not isinstance(content.get('meta'), dict):
        content['meta'] = {}
    # Of MMCV 1. MMEngine would run it as a config when it resumes.
    content['meta'].pop('config', None)
    return content


def _count_weights(value: Any) -> int:
    """Count the tensors of a state dict; 0 for what is none."""
    if not isinstance(value, dict) or not all(
        isinstance(key, str) for key in value
    ):
        return 0
    return sum(isinstance(item, torch.Tensor) for item in value.values())


def _find_state_dicts(
    content: dict, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], int]]:
    for key, value in content.items():
        # Not those of optimizers, whose keys are numbers.
        if not isinstance(key, str) or not isinstance(value, dict):
            continue
        if count := _count_weights(value):
            yield (*place, key), count
        elif len(place) < 3:
            yield from _find_state_dicts(value, (*place, key))


def _without_weights(path: str, nested: list[tuple[str, ...]]) -> RuntimeError:
    if not nested:
        return RuntimeError(
            f'{path} holds no weights: save them, {_SAVE_WEIGHTS}'
        )
    where = ' and '.join(map('.'.join, nested[:3]))
    place = ''.join(f'[{name!r}]' for name in nested[0])
    return RuntimeError(
        f'{path} holds no weights where they are looked for, but in {where}: '
        'save those that you mean, '
        f"torch.save({{'state_dict': torch.load(path){place}}}, path)"
    )


def _check_entry(name: str, value: Any, path: str) -> None:
    # What a module adds to its weights may be anything; words and numbers
    # beside the weights say something of them.
    plain = (torch.Tensor, str, int, float, type(None))
    if not isinstance(value, plain) and not name.endswith('_extra_state'):
        raise RuntimeError(
            f'{path} holds a {type(value).__name__} as {name}, where a '
            f'tensor is wanted: save it again, {_SAVE_WEIGHTS}'
        )
