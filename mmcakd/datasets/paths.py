"""Files that should be there."""

import os
from collections import defaultdict
from collections.abc import Iterable

from mmengine.fileio import exists, isdir, list_dir_or_file


def find_missing(
    paths: Iterable[str], backend_args: dict | None = None
) -> list[str]:
    """Find out which files are not there.

    Each folder is listed once: to ask for a million files one by one takes
    minutes where they lie on a network.

    Args:
        paths (Iterable[str]): Of files.
        backend_args (dict, optional): Of MMEngine's file backend. Defaults
            to None, by the path.

    Returns:
        list[str]: The paths of those that are missing, in their order.

    Examples:
        >>> from mmcakd.datasets.paths import find_missing
        >>> find_missing([__file__, 'no/such/file.png'])
        ['no/such/file.png']
    """
    paths = list(paths)
    names_by_folder = defaultdict(set)
    for path in paths:
        folder, name = os.path.split(path)
        names_by_folder[folder].add(name)
    missing = set()
    for folder, names in names_by_folder.items():
        found = set()
        if isdir(folder or '.', backend_args):
            found.update(
                list_dir_or_file(
                    folder or '.', list_dir=False, backend_args=backend_args
                )
            )
        missing.update(os.path.join(folder, name) for name in names - found)
    # Hidden files are not listed.
    return [
        path
        for path in paths
        if path in missing and not exists(path, backend_args)
    ]
