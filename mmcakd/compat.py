"""What lets the OpenMMLab stack run on today's PyTorch.

MMRazor 1.0.0 was released for PyTorch 1.13 and MMPretrain 1.2.0 for 2.0; of
the second, but not of the first, there is a continuation. Each function here
mends one break, looks first whether the break is there, and does nothing
where it is not. :func:`apply` runs them in order when ``mmcakd`` is imported;
nothing is forked and no file on disk is changed.
"""

import importlib
import math
import os
import sys
from contextlib import redirect_stdout
from functools import wraps
from importlib.util import find_spec
from inspect import signature
from numbers import Rational, Real
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmengine.utils import digit_version


def declare_torchvision_ops() -> None:
    """Declare ``torchvision::nms`` and ``qnms`` when torchvision cannot.

    The published torchvision wheel is built for CUDA. Beside a CPU build of
    torch its compiled operators do not load, and ``import torchvision`` fails
    while it registers shape functions for operators that do not exist.
    Declaring their schemas is enough: no image transform calls them, and
    calling them still raises a clear "no kernel" error.

    Unnecessary once torchvision guards these registrations.
    """
    if 'torchvision' in sys.modules:
        return
    spec = find_spec('torchvision')
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob('_C*.so'):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:
            continue
    schema = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for operator in ('nms', 'qnms'):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(operator + schema)
    # A library's definitions live as long as the object.
    declare_torchvision_ops.library = library  # type: ignore[attr-defined]


def import_mmrazor_beside_newer_mmcv() -> None:
    """Let MMRazor be imported beside a newer mmcv than it knew.

    It asserts that mmcv is 2.1.0 at most, whose parts that it uses have not
    changed. The version that mmcv tells is another one for that import alone.

    Unnecessary once MMRazor asks for mmcv < 3.
    """
    import mmcv

    newest = '2.1.0'
    version = mmcv.__version__
    if 'mmrazor' in sys.modules or not digit_version(version) > digit_version(
        newest
    ):
        return
    mmcv.__version__ = newest
    try:
        importlib.import_module('mmrazor')
    finally:
        mmcv.__version__ = version


def stub_quantization_backends() -> None:
    """Stand in for MMRazor's quantization backend tables.

    ``mmrazor.models`` imports them although only its quantizers use them, and
    they import ``reverse2``, ``reverse3`` and ``reverse_sequential_wrapper2``,
    which PyTorch removed in 2.0. The stand-in raises only when a quantizer
    asks for a backend.

    Unnecessary once MMRazor supports PyTorch 2.
    """
    from torch.ao.quantization import fuser_method_mappings

    name = 'mmrazor.structures.quantization.backend_config'
    if hasattr(fuser_method_mappings, 'reverse2') or name in sys.modules:
        return

    def unavailable(*args, **kwargs):
        raise RuntimeError(
            "MMRazor's quantization backends need torch < 2.0; distillation "
            'does not use them'
        )

    class UnavailableBackends(dict):
        __missing__ = unavailable

    stub = ModuleType(name, 'Stand-in made by mmcakd.compat.')
    stub.BackendConfigs = UnavailableBackends()
    for backend in ('native', 'academic', 'openvino', 'tensorrt'):
        for suffix in ('', '_dict'):
            setattr(stub, f'get_{backend}_backend_config{suffix}', unavailable)
    stub.__all__ = [key for key in vars(stub) if not key.startswith('__')]
    sys.modules[name] = stub


def see_plain_dicts_of_modules() -> None:
    """Let MMRazor switch off in-place activations again.

    ``BaseAlgorithm.set_module_inplace_false`` walks ``nn.Module._modules`` and
    descends only into an ``OrderedDict``. PyTorch made ``_modules`` a plain
    dict in 2.5, so the walk ends at once and, without a word, a feature
    recorded before a ReLU is overwritten by it.

    Unnecessary once MMRazor walks ``nn.Module.modules()``.
    """
    base = importlib.import_module('mmrazor.models.algorithms.base')
    if not isinstance(torch.nn.Module()._modules, base.OrderedDict):
        base.OrderedDict = dict


def trust_mmengine_checkpoints() -> None:
    """Allow what MMEngine itself writes into a checkpoint.

    Since PyTorch 2.6 ``torch.load`` unpickles only tensors and allow-listed
    classes. MMEngine's message hub stores ``HistoryBuffer`` objects with
    numpy arrays and references to their own methods in them, so that resuming
    fails. What is allowed here holds numbers only: code in a hostile file is
    still refused.

    Unnecessary once MMEngine registers them itself.
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer

    def history_statistic(owner, name):
        # Stands in for `getattr`, which itself would lead to any code.
        statistics = HistoryBuffer()._statistics_methods
        if owner is HistoryBuffer and name in statistics:
            return statistics[name]
        raise UnpicklingError(f'{name} of {owner} is not a statistic')

    # Asked of numpy itself: their home moved from numpy.core to numpy._core.
    rebuild_array = np.empty(0).__reduce__()[0]
    rebuild_scalar = np.float64().__reduce__()[0]
    dtypes = {type(np.dtype(t)) for t in (bool, 'i4', 'i8', 'u8', 'f4', 'f8')}
    torch.serialization.add_safe_globals(
        [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
        + [(history_statistic, 'builtins.getattr')]
        # A file spells the names as the numpy that wrote it did.
        + [
            (function, f'numpy.{package}.multiarray.{function.__name__}')
            for function in (rebuild_array, rebuild_scalar)
            for package in ('core', '_core')
        ]
    )


def find_editable_installs() -> None:
    """Let ``package::config.py`` find packages installed for development.

    MMEngine looks for a package beside its metadata. Since PEP 660 an
    editable install keeps the metadata alone in site-packages, and the
    configs of such a package are not found.

    Unnecessary once MMEngine asks the import system.
    """
    from mmengine.config import config
    from mmengine.hub import hub

    original = config.get_installed_path
    if getattr(original, 'finds_editable_installs', False):
        return

    def get_installed_path(package: str) -> str:
        path = original(package)
        spec = find_spec(package)
        if not os.path.exists(path) and spec and spec.origin:
            return os.path.dirname(spec.origin)
        return path

    get_installed_path.finds_editable_installs = True
    config.get_installed_path = hub.get_installed_path = get_installed_path


def refuse_to_install_packages() -> None:
    """Say which package is missing instead of installing it.

    MMEngine's hub runs ``python -m pip install`` for the package of a config
    or model that is not installed, from whatever registry and with whatever
    ``python`` comes first, and other routes end in a bare
    ``DistributionNotFound``.

    Unnecessary once MMEngine asks before it installs.
    """
    import mmengine.utils
    from mmengine.config import config
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.hub import hub
    from mmengine.utils import package_utils

    if hasattr(package_utils.install_package, 'refuses'):
        return
    modules = {package: module for module, package in MODULE2PACKAGE.items()}
    original = config.get_installed_path

    def install_package(package: str) -> None:
        spec = find_spec(modules.get(package, package))
        if spec is not None and spec.origin is not None:
            return
        if package == 'mmcls':
            cure = 'it is MMPretrain now: write mmpretrain:: for mmcls::'
        else:
            cure = f'if you want it, install it: mim install {package}'
        raise ModuleNotFoundError(
            f'a config or model of {package} is named, which is not '
            f'installed; {cure}',
            name=package,
        )

    def is_installed(package: str) -> bool:
        install_package(package)
        return True

    @wraps(original)
    def get_installed_path(package: str) -> str:
        install_package(package)
        return original(package)

    install_package.refuses = True
    for module in (mmengine.utils, package_utils, hub):
        module.install_package = install_package
    config.is_installed = is_installed
    config.get_installed_path = hub.get_installed_path = get_installed_path


def name_empty_images() -> None:
    """Name the image file that OpenCV fails on.

    MMCV's ``LoadImageFromFile`` names a missing file and one that is no
    image. An empty one, as a broken copy leaves it, ends in an assertion of
    OpenCV that does not say which of a million files it was.

    Unnecessary once MMCV names it.
    """
    import cv2
    from mmcv.transforms import LoadImageFromFile

    original = LoadImageFromFile.transform
    if hasattr(original, '__wrapped__'):
        return

    @wraps(original)
    def transform(self, results: dict) -> dict | None:
        try:
            return original(self, results)
        except cv2.error as error:
            raise OSError(
                f'{results["img_path"]} cannot be read as an image; it may '
                'be empty: copy it again or remove it'
            ) from error

    LoadImageFromFile.transform = transform


def rename_weights_of_wrapped_models() -> None:
    """Let models of timm and Hugging Face be part of another model.

    MMPretrain's wrappers drop ``model.`` from the names of the weights they
    save and add it to those they load. To drop it they return a new
    dictionary, which torch and MMEngine ignore for a part of a model: there
    it is not dropped, but added a second time, and an algorithm with such a
    student cannot be resumed.

    Unnecessary once MMPretrain renames in place.
    """
    from mmpretrain.models import HuggingFaceClassifier, TimmClassifier

    def remove_prefix(self, state_dict, prefix, local_metadata) -> None:
        inner = f'{prefix}model.'
        for key in [key for key in state_dict if key.startswith(inner)]:
            state_dict[prefix + key[len(inner) :]] = state_dict.pop(key)

    for wrapper in (TimmClassifier, HuggingFaceClassifier):
        weights = {'part.model.weight': None}
        wrapper._remove_state_dict_prefix(None, weights, 'part.', None)
        if 'part.weight' not in weights:
            wrapper._remove_state_dict_prefix = staticmethod(remove_prefix)


def write_files_whole() -> None:
    """Let MMEngine write files whole or not at all.

    It writes checkpoints and what it dumps in place, so that a kill, or a
    full disk, leaves half a file where a whole one was.

    Unnecessary once MMEngine writes beside the file and renames.
    """
    from mmengine.fileio import LocalBackend

    if hasattr(LocalBackend.put, '__wrapped__'):
        return

    def whole(original):
        @wraps(original)
        def put(self, obj, filepath, *args, **kwargs) -> None:
            from .utils.files import replacing

            # It makes the folder; so must whoever writes beside the file.
            os.makedirs(os.path.dirname(filepath) or '.', exist_ok=True)
            with replacing(filepath) as written:
                original(self, obj, written, *args, **kwargs)

        return put

    LocalBackend.put = whole(LocalBackend.put)
    LocalBackend.put_text = whole(LocalBackend.put_text)


def keep_the_last_checkpoint() -> None:
    """Put a ``CheckpointHook`` that survives a kill in MMEngine's place.

    MMEngine removes the outdated checkpoint before it writes the new one: a
    run that keeps one checkpoint and is killed in between has none. See
    :class:`mmcakd.engine.hooks.SafeCheckpointHook`.

    Unnecessary once MMEngine removes it afterwards, and keeps the place in
    an epoch and in an accumulation of gradients.
    """
    from mmengine import hooks
    from mmengine.registry import HOOKS

    from .engine.hooks import SafeCheckpointHook

    name = 'CheckpointHook'
    HOOKS.register_module(name, force=True, module=SafeCheckpointHook)
    hooks.CheckpointHook = SafeCheckpointHook


def find_checkpoints_that_load() -> None:
    """Let ``resume=True`` find the newest checkpoint that can be read.

    MMEngine takes the path in the file ``last_checkpoint`` as it is: a run
    whose folder was moved, or whose pointer or checkpoint is damaged, cannot
    be resumed without naming a file. See
    :func:`mmcakd.engine.find_newest_checkpoint`.

    Unnecessary once MMEngine looks for itself.
    """
    from mmengine import runner
    from mmengine.runner import _flexible_runner, checkpoint
    from mmengine.runner import runner as runner_module

    from .engine.resume import find_newest_checkpoint

    for module in (runner, checkpoint, runner_module, _flexible_runner):
        module.find_latest_checkpoint = find_newest_checkpoint


def read_checkpoints_safely() -> None:
    """Let MMEngine open checkpoints as :mod:`mmcakd.models.teachers` does.

    Of a file that is missing, cut off, damaged or something else, MMEngine
    shows what torch says: an end of file, an error of its zip library, or
    the advice to switch the safety off. What it downloads it reads by
    :mod:`torch.hub`, which does run code that is in a file. Averaged weights
    beside the trained ones it does not see.

    Unnecessary once MMEngine reads weights only, wherever they are from, and
    says what is wrong with a file.
    """
    from mmengine.runner import CheckpointLoader, checkpoint

    # Imported when they are called: the package needs what is mended here.
    def load_from_local(filename, map_location=None):
        from mmcakd.models.teachers.reader import read_local
        from mmcakd.models.teachers.state_dicts import prefer_average

        return prefer_average(read_local(filename, map_location))

    def load_from_http(filename, map_location=None, **kwargs):
        from mmcakd.models.teachers.reader import read_url
        from mmcakd.models.teachers.state_dicts import prefer_average

        return prefer_average(read_url(filename, map_location, **kwargs))

    register = CheckpointLoader.register_scheme
    register('', load_from_local, force=True)
    register(('http://', 'https://'), load_from_http, force=True)
    # The loaders that turn a name of a model zoo into a URL call it.
    checkpoint.load_from_http = load_from_http


def never_unpickle() -> None:
    """Let the continuation of MMEngine read weights only, always.

    What it cannot read so it reads again by unpickling it, and runs what is
    in it: also files that its loaders for S3 and other stores fetch.

    Unnecessary once it stops at the first try.
    """
    from mmengine.runner import checkpoint

    if not hasattr(checkpoint, '_safe_torch_load'):
        return

    def load(file, map_location=None, weights_only=True):
        return torch.load(file, map_location=map_location, weights_only=True)

    checkpoint._safe_torch_load = load


def refuse_to_resume_from_weights() -> None:
    """Say so when a file to resume from is no checkpoint of a training.

    MMEngine resumes as far as it comes, and ends in a ``KeyError``, or goes
    on with a new optimizer.

    Unnecessary once MMEngine checks what it resumes from.
    """
    from mmengine.runner import Runner

    original = Runner.resume
    if hasattr(original, '__wrapped__'):
        return

    @wraps(original)
    def resume(self, filename, *args, **kwargs) -> None:
        from mmcakd.models.teachers import check_resumable

        def load_checkpoint(*args, **kwargs) -> dict:
            checkpoint = type(self).load_checkpoint(self, *args, **kwargs)
            check_resumable(checkpoint, filename)
            return checkpoint

        self.load_checkpoint = load_checkpoint
        try:
            original(self, filename, *args, **kwargs)
        finally:
            del self.load_checkpoint

    Runner.resume = resume


def spell_out_infinite_settings() -> None:
    """Let a config with ``inf`` or ``nan`` be read again.

    MMEngine writes them as these words, into checkpoints and work
    directories, and no Python knows them: whoever reads such a config ends in
    ``NameError: name 'inf' is not defined``.

    Unnecessary once MMEngine writes ``float('inf')``.
    """
    from mmengine.config import Config

    original = Config.pretty_text.fget
    sample = Config(dict(a=float('inf')), format_python_code=False)
    if 'float' in sample.pretty_text:
        return

    class Spelled(float):
        def __repr__(self) -> str:
            return f"float('{float(self)}')"

        __str__ = __repr__

    def spell(value):
        if isinstance(value, dict):
            return {spell(key): spell(item) for key, item in value.items()}
        if type(value) in (list, tuple, set):
            return type(value)(map(spell, value))
        if isinstance(value, Real) and not isinstance(value, Rational):
            return value if math.isfinite(value) else Spelled(value)
        return value

    @wraps(original)
    def pretty_text(self) -> str:
        # All that it asks of a config.
        config = SimpleNamespace(
            to_dict=lambda: spell(self.to_dict()),
            _format_python_code=self._format_python_code,
        )
        return original(config)

    Config.pretty_text = property(pretty_text)


def restore_dropped_names_of_numpy() -> None:
    """Give two modules the names that numpy dropped in 1.24 and in 2.4.

    They are ``np.int``, by which MMRazor encodes the candidates of a search,
    and ``np.in1d``, by which MMPretrain computes the recall of a retrieval.
    The two modules alone see them.

    Unnecessary once MMRazor and MMPretrain write ``int`` and ``np.isin``.
    """
    import numpy as np
    from mmpretrain.evaluation.metrics import retrieval
    from mmrazor.models.task_modules.predictor import metric_predictor

    dropped = ((metric_predictor, 'int', int), (retrieval, 'in1d', np.isin))
    for module, name, value in dropped:
        if not hasattr(module.np, name):
            module.np = ModuleType('numpy', f'numpy with {name}.')
            vars(module.np).update(vars(np), **{name: value})


def call_validation_hooks_once() -> None:
    """Let a validation of student and teacher call each hook once.

    MMRazor's ``SingleTeacherDistillValLoop`` calls ``before_val_epoch`` for
    the student and again for the teacher, but ``after_val_epoch`` once: an
    ``EMAHook``, which exchanges the weights in each, goes on training with
    the averaged ones. It also shows hooks the teacher's predictions as those
    of the run, and returns no metrics.

    Unnecessary once MMRazor calls them in pairs.
    """
    from mmengine.runner.amp import autocast
    from mmrazor.engine import SingleTeacherDistillValLoop as Loop

    if not Loop.run.__module__.startswith('mmrazor.'):
        return

    @torch.no_grad()
    def run_iter_teacher(self, idx: int, data_batch: dict) -> None:
        with autocast(enabled=self.fp16):
            outputs = self.teacher.val_step(data_batch)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)

    def run(self) -> dict[str, float]:
        runner, size = self.runner, len(self.dataloader.dataset)
        runner.call_hook('before_val')
        runner.call_hook('before_val_epoch')
        runner.model.eval()
        for idx, data_batch in enumerate(self.dataloader):
            self.run_iter(idx, data_batch)
        metrics = self.evaluator.evaluate(size)
        for idx, data_batch in enumerate(self.dataloader):
            self.run_iter_teacher(idx, data_batch)
        for key, value in self.evaluator.evaluate(size).items():
            metrics[f'teacher.{key}'] = value
        runner.call_hook('after_val_epoch', metrics=metrics)
        runner.call_hook('after_val')
        return metrics

    Loop.run_iter_teacher = run_iter_teacher
    Loop.run = run


def leave_out_multimodal_models() -> None:
    """Leave out MMPretrain's multimodal models where they cannot be imported.

    MMPretrain imports them, and so fails to be imported, wherever
    pycocotools and transformers are installed: every user of MMDetection and
    Hugging Face has both. What they take from ``transformers.modeling_utils``
    was moved away in 4.52 (``GenerationMixin``) and in 4.56
    (``apply_chunking_to_forward``: "NoneType takes no arguments"). Where the
    models are left out, building one of them says why.

    Unnecessary once MMPretrain supports these releases.
    """
    from importlib.metadata import version

    import mmpretrain
    from mmpretrain.utils import dependency

    if not dependency.WITH_MULTIMODAL:
        return
    classic = digit_version(mmpretrain.__version__) < digit_version('1.3')
    bound = '4.52' if classic else '5'
    installed = version('transformers')
    if digit_version(installed) < digit_version(bound):
        return

    def unavailable(*args, **kwargs):
        raise ImportError(
            f"MMPretrain's multimodal models need transformers < {bound}, "
            f'but {installed} is installed: pip install "transformers<{bound}"'
        )

    def register_placeholders(names: list[str], registry: Registry) -> None:
        for name in names:
            registry.register_module(name=name, module=unavailable)

    dependency.WITH_MULTIMODAL = False
    dependency.register_multimodal_placeholder = register_placeholders


def print_nothing_when_imported() -> None:
    """Let the continuation of MMPretrain keep off a tool's output.

    Its data sets print "Could not import OneDL", about a service that hardly
    anybody has, to where a tool prints a table or JSON. It goes to the
    standard error.

    Unnecessary once it is logged.
    """
    with redirect_stdout(sys.stderr):
        importlib.import_module('mmpretrain.datasets')


def let_mmrazor_find_mmpretrain() -> None:
    """Give MMRazor the parts of MMPretrain that it looks for in ``mmcls``.

    That is MMPretrain's former name. Where it is not installed, MMRazor puts
    placeholders in their place, which fail when they are used: the criterion
    of ``KDSoftCELoss`` and the base classes of ``DeiTClsHead``,
    ``PackCRDClsInputs``, searchable backbones and more. While MMRazor is
    imported, ``mmcls`` is MMPretrain. ``DeiTClsHead`` also unpacks what its
    backbone returned then, with the patch tokens in front of the two others.

    Unnecessary once MMRazor imports from MMPretrain.
    """
    if find_spec('mmcls') or 'mmrazor.models' in sys.modules:
        return
    from mmpretrain.datasets.transforms import formatting
    from mmpretrain.structures import DataSample

    renamed = {
        'structures': dict(ClsDataSample=DataSample),
        'datasets': {},
        'datasets.transforms': {},
        'datasets.transforms.formatting': dict(
            PackClsInputs=formatting.PackInputs, to_tensor=formatting.to_tensor
        ),
    }
    stand_ins = {'mmcls': importlib.import_module('mmpretrain')}
    for name in (
        'evaluation',
        'models',
        'models.backbones',
        'models.backbones.base_backbone',
        'models.heads',
        'models.losses',
        'models.losses.cross_entropy_loss',
        'models.utils',
    ):
        module = importlib.import_module(f'mmpretrain.{name}')
        stand_ins[f'mmcls.{name}'] = module
    for name, parts in renamed.items():
        stand_ins[f'mmcls.{name}'] = ModuleType(f'mmcls.{name}')
        vars(stand_ins[f'mmcls.{name}']).update(parts)
    sys.modules.update(stand_ins)
    try:
        heads = importlib.import_module('mmrazor.models.architectures.heads')
        importlib.import_module('mmrazor.datasets')
    finally:
        for name in stand_ins:
            del sys.modules[name]

    original = heads.DeiTClsHead.pre_logits

    @wraps(original)
    def pre_logits(self, feats: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        return original(self, ((None, *feats[-1][-2:]),))

    heads.DeiTClsHead.pre_logits = pre_logits


def decay_layers_without_weight_decay() -> None:
    """Let layer-wise learning rates work without a given weight decay.

    MMPretrain's constructor lists the weight decay of every parameter in its
    log, and fails with ``KeyError: 'weight_decay'`` where the config of the
    optimizer leaves it at its default. It is given that default.

    Unnecessary once MMPretrain looks first.
    """
    from mmpretrain.engine.optimizers import (
        LearningRateDecayOptimWrapperConstructor as Constructor,
    )
    from mmpretrain.registry import OPTIMIZERS

    original = Constructor.__init__
    if hasattr(original, '__wrapped__'):
        return

    @wraps(original)
    def init(self, optim_wrapper_cfg: dict, *args, **kwargs) -> None:
        original(self, optim_wrapper_cfg, *args, **kwargs)
        if self.base_wd is None:
            kind = self.optimizer_cfg['type']
            kind = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
            parameter = signature(kind).parameters.get('weight_decay')
            self.base_wd = parameter.default if parameter else 0.0

    Constructor.__init__ = init


def switch_batch_augments_on() -> None:
    """Let MixUp that ``SwitchRecipeHook`` switches on happen.

    MMPretrain's hook writes the batch augmentations into the data
    preprocessor of the model, whichever that is, and without one-hot labels.
    ``ClsDataPreprocessor`` mixes nothing that has no one-hot labels, and no
    other preprocessor reads them at all; neither says so. One-hot labels are
    switched on with them, as where they are given from the start, and other
    preprocessors are refused before training. Where nothing is mixed any
    longer one-hot labels are integers, which cross-entropy takes for no
    probabilities, so they are made floats.

    Unnecessary once MMPretrain does the same.
    """
    from mmengine.model import is_model_wrapper
    from mmpretrain.engine.hooks import SwitchRecipeHook
    from mmpretrain.models.utils import data_preprocessor

    make_onehot = data_preprocessor.batch_label_to_onehot
    check, switch = (
        SwitchRecipeHook.before_train,
        SwitchRecipeHook._switch_batch_augments,
    )
    if hasattr(check, '__wrapped__'):
        return

    def find_preprocessor(runner: Runner) -> torch.nn.Module:
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        return model.data_preprocessor

    @wraps(check)
    def before_train(self, runner: Runner) -> None:
        preprocessor = find_preprocessor(runner)
        recipes = self.schedule.values()
        if not hasattr(preprocessor, 'batch_augments') and any(
            recipe.get('batch_augments') for recipe in recipes
        ):
            raise ValueError(
                f'SwitchRecipeHook: a {type(preprocessor).__name__} does no '
                'batch_augments; set data_preprocessor=dict('
                "type='ClsDataPreprocessor', num_classes=...)"
            )
        check(self, runner)

    @wraps(switch)
    def switch_batch_augments(runner: Runner, batch_augments: Any) -> None:
        if batch_augments:
            find_preprocessor(runner).to_onehot = True
        switch(runner, batch_augments)

    @wraps(make_onehot)
    def batch_label_to_onehot(*args, **kwargs) -> torch.Tensor:
        return make_onehot(*args, **kwargs).float()

    data_preprocessor.batch_label_to_onehot = batch_label_to_onehot
    SwitchRecipeHook.before_train = before_train
    SwitchRecipeHook._switch_batch_augments = staticmethod(
        switch_batch_augments
    )


#: In the order they are applied: the first ones make later imports possible.
FIXES = (
    declare_torchvision_ops,
    import_mmrazor_beside_newer_mmcv,
    stub_quantization_backends,
    leave_out_multimodal_models,
    print_nothing_when_imported,
    let_mmrazor_find_mmpretrain,
    trust_mmengine_checkpoints,
    see_plain_dicts_of_modules,
    find_editable_installs,
    refuse_to_install_packages,
    name_empty_images,
    rename_weights_of_wrapped_models,
    decay_layers_without_weight_decay,
    switch_batch_augments_on,
    restore_dropped_names_of_numpy,
    call_validation_hooks_once,
    spell_out_infinite_settings,
    write_files_whole,
    read_checkpoints_safely,
    never_unpickle,
    refuse_to_resume_from_weights,
    keep_the_last_checkpoint,
    find_checkpoints_that_load,
)


def apply() -> None:
    """Apply every fix that is needed."""
    for fix in FIXES:
        fix()
