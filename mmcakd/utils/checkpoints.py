"""The checkpoints that a run left in its work directory."""

import logging
from pathlib import Path

from mmengine.logging import print_log

from mmcakd.models.teachers import read_checkpoint


def newest_checkpoint(work_dir: str | Path) -> Path | None:
    """Find the newest checkpoint of a training that can be read.

    The pointer ``last_checkpoint`` may be missing, garbled or stale, and the
    folder may have been moved or copied. What is passed over, and why, is
    logged.

    Args:
        work_dir (str | Path): The work directory of the run.

    Returns:
        Path, optional: None if there is nothing to go on from.
    """
    work_dir = Path(work_dir)
    skipped: list[str] = []
    pointed = pointed_checkpoint(work_dir)
    iterations = {}
    if pointed is not None:
        iterations[pointed] = _read_iteration(pointed, skipped)
    is_lost = iterations.get(pointed) is None
    for path in sorted(work_dir.glob('*.pth')):
        if path == pointed or path.name.startswith(('.', 'best_')):
            continue
        # A kill may fall between a checkpoint and the pointer to it. Older
        # files may be of a former run in the same folder.
        if is_lost or path.stat().st_mtime > pointed.stat().st_mtime:
            iterations[path] = _read_iteration(path, skipped)
    for problem in skipped:
        print_log(f'Passed over: {problem}', 'current', logging.WARNING)
    found = {path: done for path, done in iterations.items() if done}
    return max(found, key=found.get, default=None)


def pointed_checkpoint(work_dir: str | Path) -> Path | None:
    """The file that ``last_checkpoint`` names, where it is now."""
    work_dir = Path(work_dir)
    try:
        text = (work_dir / 'last_checkpoint').read_text().strip()
        # By name, so that a moved or copied folder is still understood.
        here, there = work_dir / Path(text).name, Path(text)
        if text and here.is_file():
            return here
        # Elsewhere only if a run was told to save there (`out_dir`): not in
        # the folder that this one is a copy of.
        if there.is_file() and not (there.parent / 'last_checkpoint').exists():
            return there
    except (OSError, ValueError):
        pass  # missing, or garbled: the folder itself tells
    return None


def _read_iteration(path: Path, skipped: list[str]) -> int | None:
    """The iteration that a run goes on from; None if it cannot."""
    try:
        checkpoint = read_checkpoint(path, mmap=True)
    except (OSError, RuntimeError) as error:
        skipped.append(str(error))
        return None
    # An export, or a teacher, is no state of a training.
    if 'optimizer' not in checkpoint:
        return None
    return checkpoint['meta'].get('iter')
