"""The file that a student's weights are in."""

from pathlib import Path

from mmcakd.models.teachers import read_checkpoint
from mmcakd.models.teachers.state_dicts import STUDENT

from ..export import export_student, find_checkpoint


def find_student(source: str | Path, which: str = 'last') -> Path:
    """Find the file with a student's weights, or export it.

    An export is ``student.pth`` in the work directory, if it is of the
    checkpoint that is asked for, or else a new file beside that checkpoint.

    Args:
        source (str | Path): Work directory of a distillation or of a
            classifier, one of its checkpoints, or an exported student.
        which (str): Which checkpoint of a work directory; see
            :func:`mmcakd.utils.find_checkpoint`. Defaults to 'last'.

    Returns:
        Path: A checkpoint whose weights are called ``backbone.*`` if the
        student is a classifier of MMPretrain.
    """
    if str(source).startswith(('http://', 'https://')):
        raise ValueError(f'download {source} and give the file')
    source = Path(source)
    if not source.is_dir():
        return _export_if_needed(source)
    exported = source / 'student.pth'
    try:
        checkpoint = find_checkpoint(source, which)
    except FileNotFoundError:
        if which == 'last' and exported.is_file():
            return exported
        raise
    if _is_export_of(exported, checkpoint):
        return exported
    return _export_if_needed(checkpoint)


def _export_if_needed(checkpoint: Path) -> Path:
    weights = read_checkpoint(checkpoint)['state_dict']
    if not any(key.startswith(STUDENT) for key in weights):
        return checkpoint
    exported = checkpoint.with_name(f'{checkpoint.stem}_student.pth')
    if _is_export_of(exported, checkpoint):
        return exported
    return export_student(checkpoint)


def _is_export_of(exported: Path, checkpoint: Path) -> bool:
    if (
        not exported.is_file()
        or exported.stat().st_mtime < checkpoint.stat().st_mtime
    ):
        return False
    made, trained = (
        read_checkpoint(path)['meta'] for path in (exported, checkpoint)
    )
    return all(made.get(key) == trained.get(key) for key in ('epoch', 'iter'))
