"""What MIM shows and fetches of the configs."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.fileio import load

ROOT = Path(__file__).parents[2]
FILES = [ROOT / name for name in load(ROOT / 'model-index.yml')['Import']]
MODELS = [model for file in FILES for model in load(file)['Models']]
by_name = pytest.mark.parametrize(
    'model', MODELS, ids=[model['Name'] for model in MODELS]
)


def test_every_metafile_is_in_the_index():
    assert set(FILES) == set(ROOT.glob('configs/*/metafile.yml'))


def test_no_name_is_given_twice():
    # MIM shows the last of those that share a name.
    names = [model['Name'] for model in MODELS]
    assert len(names) == len(set(names)) > 90


@by_name
def test_model_is_named_after_its_method_and_config(model):
    config = Path(model['Config'])
    assert (ROOT / config).is_file()
    method = config.parent.name
    name = config.stem if method == 'baselines' else f'{method}_{config.stem}'
    assert model['Name'] == name == name.lower()


@by_name
def test_results_say_whose_they_are(model):
    source = model.get('Metadata', {}).get('Results From')
    has_results = bool(model.get('Results'))
    assert source == ('the paper, not measured here' if has_results else None)


@by_name
def test_mim_has_a_config_to_write_and_nothing_to_fetch(model, tmp_path):
    """As ``mim download`` goes: a file that is there is not fetched."""
    for url in model['Weights'].split(','):
        assert (tmp_path / url.split('/')[-1]).exists()


def test_mim_downloads_a_config(tmp_path, monkeypatch):
    pytest.importorskip('mim', reason='MIM pins packages that others need')
    from mim.commands import download, search

    for module in (download, search):
        monkeypatch.setattr(module, 'is_installed', lambda package: True)
        monkeypatch.setattr(
            module, 'get_installed_path', lambda package: str(ROOT)
        )
    monkeypatch.setattr(download, 'module_full_name', lambda package: package)
    download.download('mmcakd', ['ofakd_swin-t_resnet18_cifar100'], tmp_path)
    (written,) = tmp_path.iterdir()
    assert written.name == 'ofakd_swin-t_resnet18_cifar100.py'
    assert Config.fromfile(written).model.type == 'mmcakd.CrossArchDistill'
