"""Sources of weights: a file, a URL, a model zoo, another package."""

import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata
from urllib.parse import urlparse

import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.dist import barrier, get_rank
from mmengine.fileio import load
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import (
    get_external_models,
    get_torchvision_models,
)
from mmengine.utils import get_installed_path
from torch import nn

from mmcakd.registry import MODELS

from .checkpoint import as_patterns, is_tolerated, load_weights

#: The cure in most messages.
WHOLE_FILE = 'name a file or URL of the whole teacher in teacher_ckpt'


class Part:
    """Weights of a teacher, or of a module of it.

    Args:
        module (str): Path of the module; the whole teacher if empty.
    """

    def __init__(self, module: str = '') -> None:
        self.module = module

    @property
    def is_whole(self) -> bool:
        return not self.module

    def check(self, model: BaseModel, ignore: str | Sequence[str]) -> None:
        """Refuse what is known not to fit before it is fetched."""

    def is_here(self, model: BaseModel) -> bool:
        """Whether they can be loaded without a network."""
        raise NotImplementedError

    def load(self, model: BaseModel, ignore: str | Sequence[str]) -> None:
        """Load them, strictly."""
        raise NotImplementedError

    def _find(self, model: BaseModel) -> nn.Module:
        try:
            return model.get_submodule(self.module)
        except AttributeError as error:
            raise ValueError(
                f'the weights of {self.module} in the config of the teacher '
                'cannot be checked, since there is no such module in the '
                f'{type(model).__name__}: {WHOLE_FILE}'
            ) from error


class CheckpointPart(Part):
    """A file or URL."""

    def __init__(
        self,
        file: str,
        module: str = '',
        prefix: str | None = None,
        package: str | None = None,
    ) -> None:
        super().__init__(module)
        self.file = str(file)
        self.prefix = prefix
        self.package = package

    def __str__(self) -> str:
        return f'{self.file} ({self.module})' if self.module else self.file

    def is_here(self, model: BaseModel) -> bool:
        if '://' not in self.file:
            return True
        target = cached_file(resolve_url(self.file))
        return target is not None and os.path.exists(target)

    def load(self, model: BaseModel, ignore: str | Sequence[str]) -> None:
        module = self._find(model)
        file = resolve_url(self.file)
        target = cached_file(file)
        is_new = target is not None and not os.path.exists(target)
        if is_new:
            announce(file, module, target, self.package)
        try:
            load_weights(module, file, ignore, self.prefix)
        except RuntimeError as error:
            if not is_new or os.path.exists(target):
                raise
            raise RuntimeError(
                f"the teacher's weights could not be fetched from {file}: put "
                f'the file at {target}, or name another in teacher_ckpt '
                f'({root_cause(error)})'
            ) from None


class ZooPart(Part):
    """What the metafile of a model zoo names."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __str__(self) -> str:
        return f'the zoo: {self.name}'

    def is_here(self, model: BaseModel) -> bool:
        # A config that is only read asks for no weights.
        return False

    def load(self, model: BaseModel, ignore: str | Sequence[str]) -> None:
        url, package = find_zoo_weights(self.name)
        CheckpointPart(url, package=package).load(model, ignore)


class _PackagePart(Part):
    """Weights that another package finds by itself, for a model of its own."""

    def __init__(self, cfg: dict, module: str = '') -> None:
        super().__init__(module)
        self.cfg = cfg

    @property
    def name(self) -> str:
        return self.cfg.get('model_name', 'a model')

    def load(self, model: BaseModel, ignore: str | Sequence[str]) -> None:
        module = self._find(model)
        if not self.is_here(model):
            announce(self._describe(module), module)
        # One process first: the others find its files.
        for is_first in (True, False):
            if (get_rank() == 0) == is_first:
                try:
                    fresh = self._fetch(ignore)
                except (OSError, ValueError) as error:
                    raise RuntimeError(
                        "the teacher's weights could not be fetched from "
                        f'{self._describe(module)}: fetch them by hand and '
                        f'name the file in teacher_ckpt ({root_cause(error)})'
                    ) from None
            barrier()
        network_of(module).load_state_dict(fresh.state_dict())
        print_log(f'Loaded the weights of the teacher from {self}', 'current')

    def _describe(self, module: nn.Module) -> str:
        return str(self)

    def _fetch(self, ignore: str | Sequence[str]) -> nn.Module:
        """Make the network anew, with its weights."""
        raise NotImplementedError


class TimmPart(_PackagePart):
    """``pretrained=True`` of timm, which is strict but for other classes."""

    def __str__(self) -> str:
        return f'timm ({self.name}, pretrained=True)'

    def _describe(self, module: nn.Module) -> str:
        source = network_of(module).pretrained_cfg or {}
        hub = source.get('hf_hub_id')
        url = f'https://huggingface.co/{hub}' if hub else source.get('url')
        licence = source.get('license')
        under = f', {licence}' if licence else ''
        return f'{url or "nowhere"} ({self.name} of timm{under})'

    def check(self, model: BaseModel, ignore: str | Sequence[str]) -> None:
        network = network_of(self._find(model))
        source = network.pretrained_cfg or {}
        classes = getattr(network, 'num_classes', 0)
        heads = source.get('classifier') or ()
        heads = (heads,) if isinstance(heads, str) else heads
        lost = [
            key
            for key in (f'{head}.weight' for head in heads)
            if not may_be_missing(key, ignore)
        ]
        # A network without a head has none to lose.
        if classes and lost and classes != source.get('num_classes'):
            raise RuntimeError(
                f"timm's weights of {self.name} are for "
                f'{source.get("num_classes")} classes and the teacher has '
                f'{classes}: its {shorten(lost)} would stay random. '
                f'{_capital(WHOLE_FILE)}, or, if nothing reads its logits, '
                'the pattern of its head in teacher_ckpt_ignore'
            )

    def is_here(self, model: BaseModel) -> bool:
        source = network_of(self._find(model)).pretrained_cfg or {}
        return bool(source.get('file') or source.get('state_dict'))

    def _fetch(self, ignore: str | Sequence[str]) -> nn.Module:
        cfg = {**self.cfg, '_scope_': 'mmpretrain', 'init_cfg': None}
        cfg.pop('checkpoint_path', None)
        return network_of(MODELS.build(cfg))


class HuggingFacePart(_PackagePart):
    """``pretrained=True`` of Hugging Face, which makes up a missing head."""

    #: What is no argument of ``from_pretrained``.
    _OWN = (
        'type',
        '_scope_',
        'model_name',
        'pretrained',
        'loss',
        'train_cfg',
        'with_cp',
        'data_preprocessor',
        'init_cfg',
    )

    def __str__(self) -> str:
        return f'Hugging Face ({self.name}, pretrained=True)'

    def _describe(self, module: nn.Module) -> str:
        return f'https://huggingface.co/{self.name}'

    def is_here(self, model: BaseModel) -> bool:
        return os.path.isdir(self.name)

    def _fetch(self, ignore: str | Sequence[str]) -> nn.Module:
        from transformers import (
            AutoImageProcessor,
            AutoModelForImageClassification,
        )

        kwargs = {k: v for k, v in self.cfg.items() if k not in self._OWN}
        network, found = AutoModelForImageClassification.from_pretrained(
            self.name, output_loading_info=True, **kwargs
        )
        lost = [
            # A key, or a key and the two shapes.
            key if isinstance(key, str) else key[0]
            for kind in ('missing_keys', 'mismatched_keys')
            for key in sorted(found[kind])
        ]
        lost = [key for key in lost if not may_be_missing(key, ignore)]
        if lost:
            raise RuntimeError(
                f'the checkpoint {self.name} of Hugging Face has no weights '
                f'for {shorten(lost)} of the teacher, which would stay '
                'random: take one that was trained on the classes of the '
                'student, or, if nothing reads its logits, name the pattern '
                'of its head in teacher_ckpt_ignore'
            )
        with suppress(OSError, ValueError, ImportError):
            # Says how images are normalised; it is on this machine now.
            AutoImageProcessor.from_pretrained(self.name)
        return network


def network_of(module: nn.Module) -> nn.Module:
    """Find the network inside a wrapper of MMPretrain."""
    return getattr(module, 'timm_model', None) or module.model


def find_zoo_weights(name: str) -> tuple[str, str]:
    """Find the URL that the metafile of a model zoo names.

    Args:
        name (str): A name from MMPretrain's model zoo, or a config file of an
            installed package, ``'mmpretrain::resnet/...py'``.

    Returns:
        tuple[str, str]: The URL, and the name of the package.

    Raises:
        ValueError: It names none, or several models share the config.

    Examples:
        >>> from mmcakd.models.teachers.weight_sources import find_zoo_weights
        >>> url, package = find_zoo_weights('resnet18_8xb32_in1k')
        >>> url.rpartition('/')[2]
        'resnet18_8xb32_in1k_20210831-fbbb1da6.pth'
    """
    scope, is_path, config = name.rpartition('::')
    package = MODULE2PACKAGE.get(scope, scope) if is_path else 'mmpretrain'
    root = os.path.join(get_installed_path(package), '.mim')
    index = os.path.join(root, 'model-index.yml')
    found = {}
    for path in load(index)['Import'] if os.path.exists(index) else ():
        for model in load(os.path.join(root, path)).get('Models') or ():
            # What follows `configs/`.
            place = (model.get('Config') or '').partition('/')[2]
            is_meant = (
                place == config
                if is_path
                else model['Name'].lower() == name.lower()
            )
            if is_meant and model.get('Weights'):
                found[model['Name']] = model['Weights']
    if len(found) != 1:
        several = f'several ({", ".join(found)})' if found else 'none'
        raise ValueError(
            f'of the weights that {package} publishes for the teacher {name} '
            f'there are {several}: {WHOLE_FILE}'
        )
    return next(iter(found.values())), package


def resolve_url(file: str) -> str:
    """Find the URL behind ``torchvision://`` and ``open-mmlab://``."""
    scheme, _, name = file.partition('://')
    zoos = {
        'torchvision': get_torchvision_models,
        'open-mmlab': get_external_models,
        'openmmlab': get_external_models,
    }
    if not name or scheme not in zoos:
        return file
    urls = zoos[scheme]()
    if name not in urls:
        raise ValueError(f'there are no weights called {file}')
    return urls[name]


def cached_file(url: str) -> str | None:
    """Find where a download is kept; None for what is no URL."""
    parsed = urlparse(url)
    if parsed.scheme not in ('http', 'https'):
        return None
    return os.path.join(
        torch.hub.get_dir(), 'checkpoints', os.path.basename(parsed.path)
    )


def announce(
    source: str,
    module: nn.Module,
    target: str | None = None,
    package: str | None = None,
) -> None:
    """Say in the log what is about to be downloaded."""
    size = sum(
        value.numel() * value.element_size()
        for value in module.state_dict().values()
    )
    parts = [f"Fetching the teacher's weights from {source}"]
    parts.append(f'about {size / 1e6:,.1f} MB')
    if package:
        parts.append(f'published by {package}, {licence_of(package)}')
    if target:
        parts.append(f'to {target}')
    print_log(', '.join(parts), 'current')


def licence_of(package: str) -> str:
    """Read under which licence a package is published."""
    try:
        fields = metadata(package)
    except PackageNotFoundError:
        return 'of unknown licence'
    named = fields.get('License-Expression') or fields.get('License')
    return named or 'of unknown licence'


def may_be_missing(key: str, ignore: str | Sequence[str]) -> bool:
    """Whether a weight is computed by the network, or is not asked for."""
    return is_tolerated(key, as_patterns(ignore))


def shorten(names: Sequence[str]) -> str:
    """Join the first three names."""
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def root_cause(error: BaseException) -> str:
    """The first line of what an error was raised from, in the end."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return (str(error).strip() or type(error).__name__).split('\n')[0]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
