import os

import pytest
import torch
from mmengine.config import Config

from mmcakd.registry import MODELS
from mmcakd.utils import (
    export_student,
    find_student,
)


@pytest.fixture
def distilled(tiny, tmp_path):
    """Work directory of a distillation, two epochs long."""
    work_dir = tmp_path / 'distilled'
    work_dir.mkdir()
    meta = dict(
        cfg=Config(dict(model=tiny.distillation())).pretty_text,
        epoch=2,
        iter=10,
    )
    student = MODELS.build(tiny.classifier(tiny.resnet()))
    weights = {
        f'architecture.{key}': value
        for key, value in student.state_dict().items()
    }
    path = work_dir / 'epoch_2.pth'
    torch.save(dict(meta=meta, state_dict=weights), path)
    (work_dir / 'last_checkpoint').write_text(str(path))
    return work_dir


def test_a_work_directory_s_student_is_exported(distilled):
    found = find_student(distilled)
    assert found == distilled / 'epoch_2_student.pth'
    trained = torch.load(distilled / 'epoch_2.pth')['state_dict']
    for key, value in torch.load(found)['state_dict'].items():
        assert torch.equal(value, trained[f'architecture.{key}'])


def test_an_export_is_made_once(distilled):
    first = find_student(distilled)
    made = first.stat().st_mtime_ns
    assert find_student(distilled / 'epoch_2.pth') == first
    assert first.stat().st_mtime_ns == made


def test_student_pth_is_taken_if_it_is_of_the_checkpoint(distilled):
    exported = export_student(distilled)
    assert exported.name == 'student.pth'
    assert find_student(distilled) == exported
    # A longer training, and a best epoch before it.
    saved = torch.load(distilled / 'epoch_2.pth')
    saved['meta']['epoch'] = 4
    for name in ('epoch_4.pth', 'best_accuracy_epoch_4.pth'):
        torch.save(saved, distilled / name)
    assert find_student(distilled) == exported
    assert find_student(distilled, 'best').name == (
        'best_accuracy_epoch_4_student.pth'
    )
    (distilled / 'last_checkpoint').write_text('epoch_4.pth')
    assert find_student(distilled).name == 'epoch_4_student.pth'
    assert torch.load(exported)['meta']['epoch'] == 2


def test_an_older_export_is_made_anew(distilled):
    exported = export_student(distilled)
    trained = (distilled / 'epoch_2.pth').stat().st_mtime
    os.utime(exported, (trained - 10, trained - 10))
    assert find_student(distilled).name == 'epoch_2_student.pth'


def test_a_student_whose_checkpoints_are_gone_is_enough(distilled):
    exported = export_student(distilled)
    (distilled / 'epoch_2.pth').unlink()
    assert find_student(distilled) == exported
    with pytest.raises(FileNotFoundError, match='save_best'):
        find_student(distilled, 'best')


def test_a_classifier_is_taken_as_it_is(student):
    assert find_student(student) == student


def test_missing_files_and_addresses_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        find_student(tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match='last checkpoint'):
        find_student(tmp_path)
    with pytest.raises(ValueError, match='download'):
        find_student('https://example.com/student.pth')
