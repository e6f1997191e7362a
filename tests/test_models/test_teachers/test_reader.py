"""Whatever a file is, it is read, or one sentence says why not."""

import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from PIL import Image
from torch import nn

from mmcakd.models.teachers import (
    check_resumable,
    load_weights,
    read_checkpoint,
)
from mmcakd.utils import export_student

#: What no user should have to read.
JARGON = re.compile(
    r'weights_only|miniz|PytorchStreamReader|EOF|codec|attribute|KeyError'
    r'|unpickl|add_safe_globals|https://pytorch',
    re.IGNORECASE,
)


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(
        nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 3)).state_dict()
    )


class Hostile:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


def cut(path: Path) -> None:
    torch.save(weights(), path)
    path.write_bytes(path.read_bytes()[:-300])


def cut_in_old_format(path: Path) -> None:
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-300])


def overwrite_weights(path: Path, begin: int, length: int) -> None:
    """Put zeros where the first tensor lies."""
    torch.save(weights(), path)
    content = bytearray(path.read_bytes())
    tensor = weights()['0.weight'].numpy().tobytes()
    start = content.index(tensor) + begin
    content[start : start + length] = bytes(length)
    path.write_bytes(content)


def flip_a_bit(path: Path) -> None:
    torch.save(weights(), path)
    content = bytearray(path.read_bytes())
    content[content.index(weights()['0.weight'].numpy().tobytes()) + 70] ^= 1
    path.write_bytes(content)


def photo(path: Path) -> None:
    Image.new('RGB', (30, 30), 'red').save(path, format='JPEG')


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('weights/readme.txt', 'not here')


def program(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(path)


def text(content: str | bytes):
    def write(path: Path) -> None:
        content_ = content.encode() if isinstance(content, str) else content
        path.write_bytes(content_)

    return write


def saved(content, **kwargs):
    return lambda path: torch.save(content(), path, **kwargs)


#: How each is made, and a part of what is said of it.
BAD = {
    'a folder': (Path.mkdir, 'is a folder'),
    'empty': (text(''), 'it is empty'),
    'zeros': (text(bytes(4096)), 'begins with zeros'),
    'cut': (cut, 'truncated or damaged'),
    'cut, of torch before 1.6': (cut_in_old_format, 'truncated or damaged'),
    'zeros over a tensor': (
        lambda path: overwrite_weights(path, 64, 512),
        'truncated or damaged',
    ),
    'zeros over all that follows': (
        lambda path: overwrite_weights(path, 64, 9000),
        'truncated or damaged',
    ),
    'one bit is wrong': (flip_a_bit, 'truncated or damaged'),
    'a photo': (photo, 'a JPEG image'),
    'a page': (text('<!doctype html><title>404'), 'HTML'),
    'JSON': (text(json.dumps(dict(state_dict=[1, 2]))), 'JSON'),
    'words': (text('weights: see above\n' * 9), 'does not write'),
    'Latin-1': (text('é'.encode('latin-1') * 80), 'does not write'),
    'a pointer of Git LFS': (
        text('version https://git-lfs.github.com/spec/v1\nsize 4\n'),
        'git lfs pull',
    ),
    'a zip archive': (archive, 'a zip archive'),
    'TorchScript': (program, 'a program of TorchScript'),
    'a list': (saved(lambda: [1, 2]), 'holds a list'),
    'a tensor': (saved(lambda: torch.ones(3)), 'holds a Tensor'),
    'no tensor': (
        saved(lambda: dict(state_dict=dict(a=[1.0], b='x'))),
        'holds no weights',
    ),
    'nothing in it': (saved(lambda: dict(state_dict={})), 'holds no weights'),
    'a list of tensors': (
        saved(lambda: dict(state_dict=list(weights().values()))),
        'holds no weights',
    ),
    'weights as numbers': (
        saved(
            lambda: dict(
                state_dict=weights() | {'0.bias': weights()['0.bias'].tolist()}
            )
        ),
        'holds a list as 0.bias',
    ),
    'a state dict in a state dict': (
        saved(lambda: dict(state_dict=dict(state_dict=weights()))),
        'but in state_dict.state_dict',
    ),
    'a state dict in a model': (
        saved(lambda: dict(model=dict(net=weights()), epoch=3)),
        'but in model.net',
    ),
    'two networks': (
        saved(lambda: dict(G=weights(), D=weights(), step=torch.tensor(3))),
        'but in G and D',
    ),
    'a whole network': (saved(lambda: nn.Linear(2, 2)), 'more than weights'),
    'a plain pickle': (
        text(pickle.dumps(dict(state_dict=dict(a=[1.0])))),
        'more than weights',
    ),
    'a plain pickle of text': (
        text(pickle.dumps(dict(a=1), protocol=0)),
        'does not write',
    ),
}


def by_teacher(path: Path) -> None:
    load_weights(nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 3)), path)


def by_init_cfg(path: Path) -> None:
    class Net(BaseModule):
        def __init__(self) -> None:
            super().__init__(dict(type='Pretrained', checkpoint=str(path)))
            self.layer = nn.Linear(2, 2)

    Net().init_weights()


def by_load_from(path: Path) -> None:
    load_checkpoint(nn.Linear(2, 2), str(path), 'cpu')


#: Ways that end in one reader: ours and MMEngine's.
ROUTES = dict(
    teacher=by_teacher,
    init_cfg=by_init_cfg,
    load_from=by_load_from,
    loader=lambda path: CheckpointLoader.load_checkpoint(str(path)),
    export=export_student,
)


@pytest.mark.parametrize('route', ROUTES)
@pytest.mark.parametrize('kind', BAD)
def test_bad_files_are_named_with_cause_and_cure(kind, route, tmp_path):
    if kind == 'a folder' and route == 'export':
        pytest.skip('a folder is a work directory for an export')
    make, said = BAD[kind]
    path = tmp_path / 'file.pth'
    make(path)
    with pytest.raises(RuntimeError) as caught:
        ROUTES[route](path)
    message = str(caught.value)
    assert str(path) in message
    assert said in message
    assert not JARGON.search(message), message
    assert '\n' not in message


@pytest.mark.parametrize('route', ROUTES)
def test_missing_file_is_named(route, tmp_path):
    path = tmp_path / 'nowhere.pth'
    with pytest.raises(FileNotFoundError, match='check the path') as caught:
        ROUTES[route](path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('route', ROUTES)
@pytest.mark.parametrize('place', ['beside', 'as a weight', 'in meta'])
@pytest.mark.parametrize('is_zip', [True, False])
def test_code_is_not_run(is_zip, place, route, tmp_path):
    mark, path = tmp_path / 'mark', tmp_path / 'hostile.pth'
    content = dict(state_dict=weights(), meta={})
    part = dict(zip(('beside', 'as a weight', 'in meta'),
                    (content, content['state_dict'], content['meta']),
                    strict=True))[place]  # fmt: skip
    part['0.bias'] = Hostile(mark)
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(RuntimeError, match=r'system\), and .* run code'):
        ROUTES[route](path)
    assert not mark.exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path):
    mark, path = tmp_path / 'mark', tmp_path / 'hostile.pth'
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Hostile(mark), protocol))
        with pytest.raises(RuntimeError, match=re.escape(str(path))):
            read_checkpoint(path)
    assert not mark.exists()


def test_torch_is_not_quoted_as_a_cause(tmp_path):
    path = tmp_path / 'hostile.pth'
    torch.save(dict(a=Hostile(tmp_path / 'mark')), path)
    with pytest.raises(RuntimeError) as caught:
        read_checkpoint(path)
    assert caught.value.__suppress_context__ and not caught.value.__cause__


# ------------------------------------------------------------------- what is


@pytest.mark.parametrize('mmap', [True, False])
@pytest.mark.parametrize('is_zip', [True, False])
def test_checkpoint_is_read_with_all_that_it_has(is_zip, mmap, tmp_path):
    path = tmp_path / 'epoch_3.pth'
    torch.save(
        dict(state_dict=weights(), meta=dict(epoch=3), optimizer={}),
        path,
        _use_new_zipfile_serialization=is_zip,
    )
    found = read_checkpoint(path, mmap)
    assert found['meta'] == dict(epoch=3) and found['optimizer'] == {}
    for key, value in weights().items():
        assert torch.equal(found['state_dict'][key], value)


def test_file_without_check_sums_is_read(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path)['state_dict'].keys() == weights().keys()


def test_weights_called_model_are_found_by_mmengine(tmp_path):
    path = tmp_path / 'deit.pth'
    torch.save(dict(model=weights(), epoch=3), path)
    net = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 3))
    load_checkpoint(net, str(path), strict=True)
    assert torch.equal(net[0].weight, weights()['0.weight'])


def test_extra_state_and_words_beside_weights_are_read(tmp_path):
    path = tmp_path / 'weights.pth'
    extra = {'0._extra_state': dict(scale=[1.0]), 'version': 2}
    torch.save(dict(state_dict=weights() | extra, meta=None), path)
    found = read_checkpoint(path)
    assert found['state_dict'].keys() == {*weights(), *extra}
    assert found['meta'] == {}


def test_home_is_understood(tmp_path, monkeypatch):
    torch.save(weights(), tmp_path / 'w.pth')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert read_checkpoint('~/w.pth')['state_dict'].keys() == weights().keys()


# ----------------------------------------------------------------- downloads


@pytest.fixture
def url(tmp_path, monkeypatch):
    """A URL, and the file that a download of it takes."""
    hub, source = tmp_path / 'hub', tmp_path / 'far.pth'
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(hub))

    def download(url, kept, progress):
        Path(kept).write_bytes(source.read_bytes())

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    return 'https://models.example/zoo/far.pth', source


def test_download_is_read_and_kept(url, monkeypatch):
    address, source = url
    torch.save(dict(state_dict=weights()), source)
    assert read_checkpoint(address)['state_dict'].keys() == weights().keys()
    source.unlink()
    assert read_checkpoint(address)['meta'] == {}


def test_code_in_a_download_is_not_run(url, tmp_path):
    """torch.hub loads what it downloads with the safety off."""
    address, source = url
    torch.save(dict(a=Hostile(tmp_path / 'mark')), source)
    for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(RuntimeError, match='could run code') as caught:
            read(address)
        assert address in str(caught.value)
    assert not (tmp_path / 'mark').exists()


def test_code_behind_a_name_of_a_model_zoo_is_not_run(
    url, tmp_path, monkeypatch
):
    address, source = url
    torch.save(dict(a=Hostile(tmp_path / 'mark')), source)
    monkeypatch.setattr(
        'mmengine.runner.checkpoint.get_torchvision_models',
        lambda: dict(resnet=address),
    )
    with pytest.raises(RuntimeError, match='could run code'):
        read_checkpoint('torchvision://resnet')
    assert not (tmp_path / 'mark').exists()


def test_download_that_fails_says_why(url):
    address, _ = url
    with pytest.raises(RuntimeError, match='could not be downloaded') as error:
        read_checkpoint(address)
    assert 'by hand' in str(error.value) and address in str(error.value)


# ------------------------------------------------------------------- resuming


def training() -> dict:
    return dict(
        state_dict=weights(),
        meta=dict(epoch=2, iter=10),
        optimizer=dict(state={}, param_groups=[]),
        message_hub={},
    )


@pytest.mark.parametrize(
    'lacks', ['meta', 'epoch', 'iter', 'optimizer', 'message_hub']
)
def test_training_goes_on_from_a_checkpoint_of_a_training(lacks):
    checkpoint = training()
    check_resumable(checkpoint, 'epoch_2.pth')
    checkpoint['meta'].pop(lacks, None)
    checkpoint.pop(lacks, None)
    with pytest.raises(RuntimeError, match=lacks) as caught:
        check_resumable(checkpoint, 'epoch_2.pth')
    assert 'epoch_2.pth' in str(caught.value)
    assert 'load_from' in str(caught.value)


@pytest.mark.parametrize('epoch', ['2', None, 2.5])
def test_training_does_not_go_on_from_what_is_no_epoch(epoch):
    checkpoint = training()
    checkpoint['meta']['epoch'] = epoch
    with pytest.raises(RuntimeError, match=r'no meta\.epoch'):
        check_resumable(checkpoint, 'epoch_2.pth')


def test_config_of_mmcv_1_is_not_kept_to_be_run(tmp_path):
    """MMEngine runs it, as Python, when it resumes."""
    path = tmp_path / 'epoch_2.pth'
    content = training()
    content['meta']['config'] = f"open({str(tmp_path / 'mark')!r}, 'w')"
    torch.save(content, path)
    found = CheckpointLoader.load_checkpoint(str(path))
    assert found['meta'] == dict(epoch=2, iter=10)
