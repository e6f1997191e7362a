"""Files that are written whole or not at all, and their digests."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a file to write that takes the place of ``path`` at the end.

    If anything is raised before, ``path`` stays what it was.

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
    path = Path(path)
    written = path.with_name(f'.{os.getpid()}.{path.name}')
    try:
        yield written
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file so that nobody ever sees half of it."""
    with replacing(path) as written:
        written.write_text(text)


def sha256(path: str | Path) -> str:
    """Digest of a file."""
    content = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(2**20):
            content.update(chunk)
    return content.hexdigest()
