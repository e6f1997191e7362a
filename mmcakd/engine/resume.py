"""The checkpoint that a run goes on from."""

import logging
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from mmcakd.models.teachers import read_checkpoint


def find_newest_checkpoint(work_dir: str | Path) -> str | None:
    """Find the newest checkpoint of a run that can be read.

    It takes the place of MMEngine's ``find_latest_checkpoint``, which
    believes the file ``last_checkpoint`` and looks no further (see
    :func:`mmcakd.compat.find_checkpoints_that_load`). The pointer may be
    missing, garbled or stale, and the folder may have been moved or copied.
    What is passed over, and why, is logged.

    Args:
        work_dir (str | Path): The run's work directory.

    Returns:
        str, optional: The file that the first process found; the same on all
        processes. None if there is nothing to go on from.
    """
    found = [None]
    if is_main_process():
        found = [_find(Path(work_dir))]
    broadcast_object_list(found)
    return found[0]


def _find(work_dir: Path) -> str | None:
    skipped: list[str] = []
    pointed = _read_pointer(work_dir)
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
    if found:
        return str(max(found, key=found.get))
    print_log(
        f'{work_dir} holds no checkpoint to go on from: training starts at '
        'the beginning',
        'current',
        logging.WARNING if skipped else logging.INFO,
    )
    return None


def _read_pointer(work_dir: Path) -> Path | None:
    """The file that ``last_checkpoint`` names, where it is now."""
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
        checkpoint = read_checkpoint(path)
    except (OSError, RuntimeError) as error:
        skipped.append(str(error))
        return None
    # An export, or a teacher, is no state of a training.
    if 'optimizer' not in checkpoint:
        return None
    return checkpoint['meta'].get('iter')
