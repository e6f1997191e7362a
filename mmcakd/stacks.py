"""Which releases of torch and of OpenMMLab's packages mmcakd works with.

There are two stacks of the same import names: OpenMMLab's own releases, which
were last made in 2023 and 2024, and ``onedl``, their continuation. They are
looked for by import name and version. This module is imported before any of
them, and so imports none of them.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import (
    find_spec,
    module_from_spec,
    spec_from_file_location,
)
from pathlib import Path

from packaging.specifiers import SpecifierSet

#: The releases of torch that this one was tested with. Before 2.6
#: ``torch.load`` runs code that is stored in a checkpoint.
TORCH = '>=2.6,<2.16'

#: What each stack consists of, by the names on PyPI.
STACKS = dict(
    classic={
        'mmengine': '>=0.10.4,<0.11',
        'mmcv-lite': '>=2.0,<2.2',  # or mmcv, which has operators besides
        'mmpretrain': '>=1.2,<1.3',
        'mmrazor': '>=1.0,<1.1',
    },
    onedl={
        'onedl-mmengine': '>=0.10.12,<0.11',
        'onedl-mmcv': '>=2.3.6,<2.4',
        'onedl-mmpretrain': '>=1.3.6,<1.4',
        'mmrazor': '>=1.0,<1.1',  # has no continuation
    },
)


def check_versions() -> None:
    """Check that torch and one of the two stacks are installed, and one alone.

    A torch that is newer than those tested is warned of.

    Raises:
        ImportError: A package is missing or outside its window, or two
            distributions wrote its folder. The message says what to install.
    """
    found = find_version('torch')
    if found is None:
        raise ImportError(
            f'mmcakd needs torch {TORCH}, which is not installed: pip install '
            f'"torch{TORCH}" torchvision'
        )
    if not is_within(found, TORCH):
        oldest = TORCH.partition(',')[0]
        told = f'mmcakd was tested with torch {TORCH}, not with {found}'
        if not is_within(found, oldest):
            raise ImportError(f'{told}: pip install "torch{TORCH}"')
        warnings.warn(told, stacklevel=2)
    check_distributions()
    stack = find_stack()
    for name, window in STACKS[stack].items():
        found = find_version(import_name(name))
        if not is_within(found, window):
            raise ImportError(
                f'mmcakd needs {import_name(name)} {window} in its {stack} '
                f'stack, {"which" if found is None else "but " + found} is '
                f'{"not " if found is None else ""}installed: pip install '
                f'"{name}{window}"'
            )


def check_distributions() -> None:
    """Check that no two distributions wrote the same folder.

    The last one overwrote files of the other, and to uninstall one of the two
    removes files of both.

    Raises:
        ImportError: Two did. The message has the line that mends it.
    """
    names = dict.fromkeys(['mmcv', *STACKS['classic'], *STACKS['onedl']])
    installed = list(filter(is_installed, names))
    for package in map(import_name, installed):
        same = [name for name in installed if import_name(name) == package]
        if len(same) > 1:
            raise ImportError(
                f'{" and ".join(same)} are both installed and write the same '
                f'folder, {package}, so that neither is whole: pip uninstall '
                f'-y {" ".join(installed)}, and install mmcakd again with one '
                'of its extras lite, full and onedl'
            )


def find_stack() -> str:
    """The stack that the installed packages are of, by their versions.

    Returns:
        The name in :data:`STACKS` of the one with most packages inside their
        windows; ``'classic'`` where nothing tells them apart.
    """

    def fit(stack: str) -> int:
        return sum(
            is_within(find_version(import_name(name)), window)
            for name, window in STACKS[stack].items()
        )

    return max(STACKS, key=fit)


def find_version(package: str) -> str | None:
    """The version of a package as it would be imported, without importing it.

    The same package is installed under several names, and under none where it
    only lies on the path.

    Args:
        package: The name that it is imported by.

    Returns:
        None if it is not there.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name('version.py')
    spec = spec_from_file_location(f'version_of_{package}', file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.__version__


def import_name(distribution: str) -> str:
    """The package that a distribution installs."""
    return distribution.removeprefix('onedl-').removesuffix('-lite')


def is_installed(distribution: str) -> bool:
    """Whether a distribution was installed under this name."""
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def is_within(release: str | None, window: str) -> bool:
    """Whether a release, also one before its time, lies in a window."""
    if release is None:
        return False
    return SpecifierSet(window).contains(release, prereleases=True)
