import os
import subprocess
import sys

import pytest

from mmcakd.utils import (
    FolderLock,
    read_json,
    read_json_lines,
    replacing,
    sha256,
    write_json,
    write_text,
)


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


def test_modes_and_links_are_kept(tmp_path):
    path, link = tmp_path / 'there.md', tmp_path / 'link.md'
    write_text(path, 'old')
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(0o640)
    link.symlink_to(path)
    write_text(link, 'new')
    assert link.is_symlink() and path.read_text() == 'new'
    assert path.stat().st_mode & 0o777 == 0o640


def test_content_is_on_the_disk_before_it_gets_the_name(tmp_path, monkeypatch):
    path, done = tmp_path / 'report.md', []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, 'fsync', lambda handle: (done.append('fsync'), fsync(handle))
    )
    monkeypatch.setattr(
        os,
        'replace',
        lambda *paths: (done.append('replace'), replace(*paths)),
    )
    write_text(path, 'new')
    assert done == ['fsync', 'replace', 'fsync']


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, dead_pid):
    alive = os.getppid()
    names = {
        f'.{dead_pid}.a.json': False,
        f'.{dead_pid}.b.json': True,  # of another file
        f'.{alive}.a.json': True,
        '.hidden.a.json': True,
    }
    for name in names:
        (tmp_path / name).touch()
    write_text(tmp_path / 'a.json', 'new')
    for name, stays in names.items():
        assert (tmp_path / name).exists() == stays, name


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / 'student.pth'
    path.write_bytes(b'old')
    code = (
        'import os, signal, sys\n'
        'from mmcakd.utils.files import replacing\n'
        'with replacing(sys.argv[1]) as written:\n'
        "    written.write_bytes(b'ne')\n"
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, path])
    assert path.read_bytes() == b'old'
    assert len(os.listdir(tmp_path)) == 2
    write_text(path, 'new')
    assert os.listdir(tmp_path) == ['student.pth']


# ------------------------------------------------------------------- reading


def test_json_is_read_as_it_was_written(tmp_path):
    content = dict(top1=61.5, curve={'1': 2}, name='ü')
    write_json(tmp_path / 'a.json', content)
    assert read_json(tmp_path / 'a.json') == content


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'\n',
        bytes(400),
        b'{"finished": tr',
        b'{"finished": true}' + bytes(30),
        b'\xff\xfe{',
        b'[1, 2]',
        b'null',
        b'[' * 100_000,
        b'\x89PNG\r\n',
    ],
)
def test_json_that_cannot_be_read_is_named(content, tmp_path):
    path = tmp_path / 'compare.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='cannot be read') as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert type(caught.value) is ValueError


def test_lines_that_were_cut_are_left_out(tmp_path):
    path = tmp_path / 'scalars.json'
    lines = [b'{"step": 1}', b'{"ste', bytes(9), b'3', b'\xff', b'{"step": 2}']
    path.write_bytes(b'\n'.join(lines) + b'\n{"step": 3')
    assert list(read_json_lines(path)) == [dict(step=1), dict(step=2)]
    path.write_bytes(b'')
    assert list(read_json_lines(path)) == []


# --------------------------------------------------------------------- locks


HOLD = """
import sys, time
from mmcakd.utils.files import FolderLock
with FolderLock(sys.argv[1]) as lock:
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that keeps a folder."""
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', HOLD, tmp_path / 'seed0'],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_is_kept_until_its_process_is_gone(holder, tmp_path):
    folder = tmp_path / 'seed0'
    with pytest.raises(RuntimeError, match='in use by process') as caught:
        FolderLock(folder).acquire()
    assert str(holder.pid) in str(caught.value)
    assert str(folder) in str(caught.value)
    with FolderLock(tmp_path / 'seed1'):
        pass
    holder.kill()
    holder.wait()
    with FolderLock(folder):
        assert not folder.exists()


def test_a_process_that_was_started_keeps_the_folder(tmp_path):
    folder = tmp_path / 'seed0'
    with FolderLock(folder) as lock:
        child = subprocess.Popen(['sleep', '60'], pass_fds=lock.handles)
        lock.name_holder(child.pid)
    with pytest.raises(RuntimeError, match=f'process {child.pid}:'):
        FolderLock(folder).acquire()
    child.kill()
    child.wait()
    FolderLock(folder).acquire().release()


def test_without_locks_of_the_system_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr('mmcakd.utils.files.fcntl', None)
    with FolderLock(tmp_path / 'a') as lock, FolderLock(tmp_path / 'a'):
        assert lock.handles == ()
