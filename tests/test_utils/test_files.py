import os

import pytest

from mmcakd.utils import replacing, sha256, write_text


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'report.md'
    write_text(path, 'old')

    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        write_text(path, 'new')
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['report.md']


def test_nothing_takes_the_place_of_a_file_if_its_writer_gives_up(tmp_path):
    path = tmp_path / 'student.pth'
    path.write_bytes(b'old')
    with pytest.raises(KeyboardInterrupt), replacing(path) as written:
        written.write_bytes(b'ne')
        raise KeyboardInterrupt
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['student.pth']


def test_digest_is_that_of_the_standard(tmp_path):
    # The example of FIPS 180-2, appendix B.1.
    path = tmp_path / 'message'
    path.write_bytes(b'abc')
    assert sha256(path) == (
        'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    )
