"""The checkpoint that a run goes on from."""

from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from mmcakd.utils import newest_checkpoint


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
        found = [newest_checkpoint(work_dir)]
        if found == [None]:
            print_log(
                f'{work_dir} holds no checkpoint to go on from: training '
                'starts at the beginning',
                'current',
            )
    broadcast_object_list(found)
    return found[0] and str(found[0])
