"""Files that are written whole or not at all, and read with suspicion."""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

#: Errors of a disk, a quota or a limit that is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a file to write that takes the place of ``path`` at the end.

    If anything is raised before, or the process is killed, ``path`` stays
    what it was. What a killed process left is removed by the next one that
    writes the same file. A link is followed, and the permissions of a file
    that is there are kept.

    Examples:
        >>> import tempfile
        >>> from mmcakd.utils import replacing
        >>> path = Path(tempfile.mkdtemp()) / 'report.md'
        >>> with replacing(path) as written:
        ...     _ = written.write_text('done')
        ...     path.exists()
        False
        >>> path.read_text()
        'done'
    """
    path = Path(os.path.realpath(path))
    remove_leftovers(path.parent, rf'\.(\d+)\.{re.escape(path.name)}')
    written = path.with_name(f'.{os.getpid()}.{path.name}')
    try:
        yield written
        if path.exists():
            shutil.copymode(path, written)
        # A rename may reach the disk before the content does.
        _flush(written)
        os.replace(written, path)
        if os.name == 'posix':
            _flush(path.parent)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(
            error.errno,
            f'{path} cannot be written ({error.strerror}); what was there '
            'before is as it was',
        ) from error
    finally:
        written.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name == 'posix' else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what processes that are gone had begun to write.

    Args:
        folder (Path): Where to look.
        pattern (str): Regular expression of the names; its first group is the
            number of the process.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        begun = re.fullmatch(pattern, path.name)
        if begun and not _is_alive(int(begun[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if os.name != 'posix':
        return True  # asking would end it
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a text file so that nobody ever sees half of it."""
    with replacing(path) as written:
        written.write_text(text, encoding='utf-8')


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file so that nobody ever sees half of it."""
    write_text(path, json.dumps(content, indent=indent) + '\n')


@contextmanager
def bounded_recursion() -> Iterator[None]:
    """Let what is nested too deeply end in a ``RecursionError``.

    MMRazor lifts Python's limit so high that a parser would overflow the
    stack and end the process.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(min(limit, 3000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def read_json(path: str | Path) -> dict:
    """Read a JSON file that holds an object.

    Args:
        path (str | Path): The file.

    Returns:
        dict: Its content.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is empty, cut off, or holds something else. The message
            names it.

    Examples:
        >>> import tempfile
        >>> from mmcakd.utils import read_json
        >>> path = Path(tempfile.mkdtemp()) / 'results.json'
        >>> _ = path.write_text('{"top1": 6')
        >>> read_json(path)
        Traceback (most recent call last):
            ...
        ValueError: .../results.json cannot be read: it is cut off or damaged
    """
    content = Path(path).read_bytes()
    if not content.strip(b'\0 \n'):
        raise ValueError(f'{path} cannot be read: it is empty')
    try:
        with bounded_recursion():
            found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{path} cannot be read: it is cut off or damaged'
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f'{path} cannot be read: it holds a {type(found).__name__}, not '
            'an object with names'
        )
    return found


def read_json_lines(path: str | Path) -> Iterator[dict]:
    """Read a file with an object on each line.

    Lines that cannot be read are left out: a process that is killed leaves
    half of one.

    Args:
        path (str | Path): The file.

    Yields:
        dict: An object.
    """
    for line in Path(path).read_bytes().splitlines():
        try:
            with bounded_recursion():
                found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


class FolderLock:
    """Keeps a folder for one process at a time, and for those it starts.

    The lock is one of the operating system: it is free again when the
    processes that have it are gone, however they ended. The file of the lock
    lies beside the folder and stays.

    Args:
        folder (str | Path): The folder. It need not be there yet.

    Examples:
        >>> import tempfile
        >>> from mmcakd.utils import FolderLock
        >>> folder = Path(tempfile.mkdtemp()) / 'seed0'
        >>> with FolderLock(folder):
        ...     FolderLock(folder).acquire()
        Traceback (most recent call last):
            ...
        RuntimeError: .../seed0 is in use by process ...
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder).absolute()
        self.folder = folder
        self.path = folder.with_name(f'.{folder.name}.lock')
        self.file = None

    @property
    def handles(self) -> tuple[int, ...]:
        """What a process that works in the folder has to inherit."""
        return () if self.file is None else (self.file.fileno(),)

    def acquire(self) -> 'FolderLock':
        """Take the lock.

        Raises:
            RuntimeError: Another process has it. The message says which.
        """
        if fcntl is None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, 'a+')  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or 'another'
            file.close()
            raise RuntimeError(
                f'{self.folder} is in use by process {holder}: wait until it '
                'ends, or choose another folder'
            ) from None
        except OSError:  # a file system without locks
            file.close()
            return self
        self.file = file
        self.name_holder(os.getpid())
        return self

    def name_holder(self, pid: int) -> None:
        """Write down which process works in the folder."""
        if self.file is not None:
            self.file.truncate(0)
            self.file.write(f'{pid}\n')
            self.file.flush()

    def release(self) -> None:
        """Give the lock up; processes that inherited it keep it."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> 'FolderLock':
        return self.acquire()

    def __exit__(self, *error) -> None:
        self.release()


def sha256(path: str | Path) -> str:
    """Digest of a file."""
    content = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(2**20):
            content.update(chunk)
    return content.hexdigest()
