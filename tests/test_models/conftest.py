"""The tiny networks of the tests of stages, for other tests."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

STAGES = Path(__file__).with_name('test_stages')


def load(name: str) -> ModuleType:
    spec = spec_from_file_location(f'{name}_again', STAGES / f'{name}.py')
    module = module_from_spec(spec)
    # Where dataclasses look for their module.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def networks() -> SimpleNamespace:
    """Small networks by name, of each package that has families."""
    mmpretrain, timm, torchvision, hugging_face = (
        load(f'test_{package}_families')
        for package in ('mmpretrain', 'timm', 'torchvision', 'huggingface')
    )
    return SimpleNamespace(
        ready=load('conftest').ready,
        mmpretrain=mmpretrain.CASES,
        timm=timm.SMALL,
        timm_images=timm.images_for,
        torchvision=torchvision.CASES,
        torchvision_images=torchvision.images_for,
        hugging_face=hugging_face.CASES,
    )
