"""Every fix of mmcakd.compat against the break it mends."""

import importlib
import importlib.metadata
import io
import os
import subprocess
import sys
import textwrap
import typing
import zipfile
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import HistoryBuffer, MessageHub

import mmcakd.compat as compat
from mmcakd.stacks import find_stack

ROOT = Path(compat.__file__).parents[1]
BACKENDS = 'mmrazor.structures.quantization.backend_config'


def run_fresh(code: str) -> subprocess.CompletedProcess:
    """Run code in a new interpreter that finds this mmcakd."""
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': path},
        timeout=300,
    )


def run_without(fix: str, code: str) -> subprocess.CompletedProcess:
    """Run code after every fix but one, and those that need the package.

    Importing the package would apply them all.
    """
    return run_fresh(
        f'import importlib.util as u\n'
        f'spec = u.spec_from_file_location("alone", {compat.__file__!r})\n'
        f'compat = u.module_from_spec(spec)\n'
        f'spec.loader.exec_module(compat)\n'
        f'for fix in compat.FIXES:\n'
        f'    try:\n'
        f'        fix.__name__ == {fix!r} or fix()\n'
        f'    except ImportError as error:\n'
        f'        if "relative import" not in str(error):\n'
        f'            raise\n' + textwrap.dedent(code)
    )


# ---------------------------------------------- silent: in-place activations


def recorded_before_relu(tiny) -> dict[str, torch.Tensor]:
    """Minima of maps that MMRazor's own algorithm records before a ReLU."""
    from mmrazor.models import SingleTeacherDistill

    recorders = dict(
        pre_relu=dict(type='ModuleOutputs', source='backbone.layer1.0.bn1')
    )
    net = tiny.classifier(tiny.resnet())
    model = SingleTeacherDistill(
        architecture=tiny.build(net),
        teacher=tiny.build(net),
        distiller=dict(
            type='mmrazor.ConfigurableDistiller',
            student_recorders=recorders,
            teacher_recorders=recorders,
            distill_losses=dict(loss=dict(type='L2Loss', normalize=False)),
            loss_forward_mappings=dict(
                loss=dict(
                    s_feature=tiny.record('pre_relu', True),
                    t_feature=tiny.record('pre_relu', False),
                )
            ),
        ),
    )
    model.train()
    model(*tiny.batch(), mode='loss')
    distiller = model.distiller
    return dict(
        student=distiller.get_record('pre_relu', True).min(),
        teacher=distiller.get_record('pre_relu', False).min(),
    )


def test_features_recorded_before_a_relu_keep_their_negatives(tiny):
    minima = recorded_before_relu(tiny)
    assert minima['student'] < -0.5
    assert minima['teacher'] < -0.5


def test_without_the_fix_a_relu_overwrites_what_was_recorded(
    tiny, monkeypatch
):
    base = importlib.import_module('mmrazor.models.algorithms.base')
    monkeypatch.setattr(base, 'OrderedDict', typing.OrderedDict)
    minima = recorded_before_relu(tiny)
    assert minima == dict(student=0, teacher=0)


def test_walk_over_modules_is_left_alone_where_they_are_ordered_dicts(
    monkeypatch,
):
    class OldModule:
        _modules = OrderedDict()

    base = importlib.import_module('mmrazor.models.algorithms.base')
    monkeypatch.setattr(base, 'OrderedDict', typing.OrderedDict)
    monkeypatch.setattr(torch.nn, 'Module', OldModule)
    compat.see_plain_dicts_of_modules()
    assert base.OrderedDict is typing.OrderedDict


# ------------------------------------------------------------- torchvision


def test_torchvision_and_mmrazor_work_in_a_fresh_process():
    done = run_fresh("""
        import mmcakd, torch
        import torchvision
        from torchvision.transforms import v2
        image = v2.RandomHorizontalFlip(p=1.)(torch.arange(4.).view(1, 2, 2))
        assert image.flatten().tolist() == [1, 0, 3, 2]
        try:
            torch.ops.torchvision.nms(torch.rand(2, 4), torch.rand(2), 0.5)
        except (NotImplementedError, RuntimeError) as error:
            assert 'torchvision::nms' in str(error), error

        from mmrazor.engine import StopDistillHook
        from mmrazor.models import (
            ConfigurableDistiller, ConvModuleConnector, KLDivergence,
            SingleTeacherDistill)
        from mmrazor.models.task_modules import (
            FunctionOutputsDelivery, MethodOutputsDelivery,
            ModuleOutputsRecorder)
        import mmpretrain.models
        print('usable')
        """)
    assert done.stdout.strip().endswith('usable'), done.stderr


def test_without_the_fix_torchvision_cannot_be_imported():
    done = run_without(
        'declare_torchvision_ops',
        """
        from importlib.util import find_spec
        from pathlib import Path
        import torch
        for file in Path(find_spec('torchvision').origin).parent.glob('_C*'):
            try:
                torch.ops.load_library(str(file))
                print('healthy')
            except OSError:
                pass
        import torchvision
        """,
    )
    if 'healthy' in done.stdout:
        pytest.skip("this torchvision's compiled operators load")
    assert done.returncode
    assert 'operator torchvision::nms does not exist' in done.stderr


@pytest.fixture
def no_library(monkeypatch):
    """Fail if any operator is declared."""

    def refuse(*args):
        raise AssertionError('an operator is declared without need')

    monkeypatch.setattr(torch.library, 'Library', refuse)


def test_no_operator_is_declared_where_torchvision_is_imported(no_library):
    assert 'torchvision' in sys.modules
    compat.declare_torchvision_ops()


def test_no_operator_is_declared_where_compiled_ones_load(
    no_library, monkeypatch
):
    loaded = []
    monkeypatch.delitem(sys.modules, 'torchvision')
    monkeypatch.setattr(torch.ops, 'load_library', loaded.append)
    compat.declare_torchvision_ops()
    if not loaded:
        pytest.skip('this torchvision has no compiled operators')
    assert Path(loaded[0]).name.startswith('_C')


# ------------------------------------------------------------ quantization


def test_without_the_fix_mmrazor_models_cannot_be_imported():
    from torch.ao.quantization import fuser_method_mappings

    if hasattr(fuser_method_mappings, 'reverse2'):
        pytest.skip('this torch still has what MMRazor imports')
    done = run_without('stub_quantization_backends', 'import mmrazor.models')
    assert done.returncode
    assert 'ImportError' in done.stderr


def test_quantization_says_at_its_use_that_it_is_not_available():
    module = importlib.import_module('mmrazor.structures.quantization')
    if 'mmcakd' not in sys.modules[BACKENDS].__doc__:
        pytest.skip('this torch has the quantization that MMRazor needs')
    backends = sys.modules[BACKENDS]
    assert module.BackendConfigs is backends.BackendConfigs
    for use in (
        lambda: module.BackendConfigs['native'],
        lambda: backends.get_native_backend_config(),
        lambda: backends.get_openvino_backend_config_dict(),
    ):
        with pytest.raises(RuntimeError, match=r'quantization.*torch < 2\.0'):
            use()


def test_quantization_is_not_replaced_where_torch_has_its_parts(monkeypatch):
    from torch.ao.quantization import fuser_method_mappings

    monkeypatch.setattr(
        fuser_method_mappings, 'reverse2', object(), raising=False
    )
    monkeypatch.delitem(sys.modules, BACKENDS)
    compat.stub_quantization_backends()
    assert BACKENDS not in sys.modules


def test_quantization_is_not_replaced_twice():
    before = sys.modules[BACKENDS]
    compat.stub_quantization_backends()
    assert sys.modules[BACKENDS] is before


# -------------------------------------------------------------- multimodal


def test_without_the_fix_mmpretrain_fails_beside_todays_transformers():
    done = run_without(
        'leave_out_multimodal_models', 'import mmpretrain.models'
    )
    assert done.returncode
    assert 'NoneType takes no arguments' in done.stderr


def test_multimodal_models_are_left_out_and_say_why():
    done = run_fresh("""
        import mmcakd
        import mmpretrain.datasets, mmpretrain.models
        from mmpretrain.registry import MODELS
        for name in ('BlipCaption', 'OFA', 'CLIPZeroShot'):
            try:
                MODELS.build(dict(type=name, anything=1))
            except ImportError as error:
                print(error)
        """)
    version = importlib.metadata.version('transformers')
    bound = '4.52' if find_stack() == 'classic' else '5'
    message = f'need transformers < {bound}, but {version} is installed'
    assert done.stdout.count(message) == 3, done.stderr


@pytest.fixture
def dependency(monkeypatch):
    """MMPretrain's flag, as where both packages are installed."""
    from mmpretrain.utils import dependency

    original = dependency.register_multimodal_placeholder
    monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', True)
    monkeypatch.setattr(
        dependency, 'register_multimodal_placeholder', original
    )
    return dependency


@pytest.mark.parametrize(
    ('mmpretrain', 'version', 'is_kept'),
    [
        ('1.2.0', '4.40.2', True),
        ('1.2.0', '4.51.3', True),
        ('1.2.0', '4.52.0', False),
        ('1.2.0', '4.57.6', False),
        ('1.2.0', '5.24.0', False),
        ('1.3.6', '4.57.6', True),
        ('1.3.6', '5.0.0', False),
    ],
)
def test_multimodal_models_stay_where_they_can_be_imported(
    dependency, monkeypatch, mmpretrain, version, is_kept
):
    monkeypatch.setattr('mmpretrain.__version__', mmpretrain)
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: version)
    compat.leave_out_multimodal_models()
    assert dependency.WITH_MULTIMODAL is is_kept


# ------------------------------------------------------------- checkpoints


@pytest.fixture
def trust_nothing():
    """Empty torch's list of trusted classes for a test."""
    trusted = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(trusted)


@pytest.fixture
def mmengine_checkpoint(tmp_path) -> Path:
    """What a Runner saves of its message hub, after some iterations."""
    hub = MessageHub.get_instance('trained')
    for value in (1.0, np.float64(2.0), np.float32(3.0)):
        hub.update_scalar('train/loss', value)
    hub.update_info('iter', np.int64(3))
    hub.update_info('best', np.float32(0.5))
    hub.update_info('done', np.bool_(True))
    path = tmp_path / 'epoch_1.pth'
    torch.save(
        dict(
            state_dict=dict(weight=torch.ones(2)),
            message_hub=hub.state_dict(),
        ),
        path,
    )
    return path


def test_checkpoints_of_mmengine_load_with_weights_only(mmengine_checkpoint):
    loaded = torch.load(mmengine_checkpoint, weights_only=True)
    hub = MessageHub.get_instance('resumed')
    hub.load_state_dict(loaded['message_hub'])
    buffer = hub.get_scalar('train/loss')
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.data[0].tolist() == [1, 2, 3]
    assert buffer.mean() == 2
    assert hub.get_info('iter') == 3
    assert hub.get_info('best') == 0.5


def test_without_the_fix_checkpoints_of_mmengine_are_refused(
    mmengine_checkpoint, trust_nothing
):
    with pytest.raises(Exception, match='HistoryBuffer'):
        torch.load(mmengine_checkpoint, weights_only=True)
    compat.trust_mmengine_checkpoints()
    torch.load(mmengine_checkpoint, weights_only=True)


@pytest.mark.parametrize('package', ['core', '_core'])
def test_checkpoints_load_whichever_numpy_wrote_them(
    mmengine_checkpoint, package
):
    # numpy 2 calls numpy.core numpy._core.
    rewritten = io.BytesIO()
    with (
        zipfile.ZipFile(mmengine_checkpoint) as source,
        zipfile.ZipFile(rewritten, 'w') as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name.endswith('data.pkl'):
                assert b'numpy.core.multiarray' in content or (
                    b'numpy._core.multiarray' in content
                )
                content = content.replace(b'numpy._core.', b'numpy.core.')
                content = content.replace(
                    b'numpy.core.', f'numpy.{package}.'.encode()
                )
            target.writestr(name, content)
    rewritten.seek(0)
    loaded = torch.load(rewritten, weights_only=True)
    assert isinstance(
        loaded['message_hub']['log_scalars']['train/loss'], HistoryBuffer
    )


class Hostile:
    """Runs a shell command when it is unpickled without a check."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f'touch {self.trace}',)


@pytest.mark.parametrize('inside', [False, True])
def test_code_in_a_checkpoint_is_still_refused(tmp_path, inside):
    trace = tmp_path / 'code_ran'
    hostile = Hostile(trace)
    if inside:
        buffer = HistoryBuffer([1.0], [1])
        buffer._log_history = hostile
        hostile = buffer
    path = tmp_path / 'hostile.pth'
    torch.save(dict(state_dict={}, message_hub=hostile), path)
    with pytest.raises(Exception, match='system'):
        torch.load(path, weights_only=True)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), 'the file would have run no code anyway'


class Reaching:
    """Asks for an attribute, as code that climbs to other objects would."""

    def __init__(self, *path) -> None:
        self.path = path

    def __reduce__(self):
        return getattr, self.path


@pytest.mark.parametrize(
    'path',
    [
        (HistoryBuffer, '__init__'),
        (HistoryBuffer, '__class__'),
        (HistoryBuffer, 'register_statistics'),
        (np.ndarray, 'tofile'),
    ],
)
def test_attributes_other_than_statistics_are_refused(tmp_path, path):
    file = tmp_path / 'reaching.pth'
    torch.save(dict(state_dict={}, message_hub=Reaching(*path)), file)
    with pytest.raises(Exception, match=path[1]):
        torch.load(file, weights_only=True)


# ------------------------------------------------------------ KDSoftCELoss


def test_soft_target_loss_of_mmrazor_is_a_soft_cross_entropy():
    from mmrazor.models import KDSoftCELoss

    student, teacher, tau = torch.randn(3, 7), torch.randn(3, 7), 2.5
    expected = 0
    for s, t in zip(student / tau, teacher / tau, strict=True):
        p = t.exp() / t.exp().sum()
        q = s.exp() / s.exp().sum()
        expected -= (p * q.log()).sum() / len(student) * tau**2
    loss = KDSoftCELoss(tau=tau, loss_weight=0.5)(student, teacher)
    assert loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-5)


def find_placeholders() -> set[tuple[str, str]]:
    """What MMRazor looked for in ``mmcls`` in vain, and what derives of it."""
    found = set()
    for name, module in list(sys.modules.items()):
        if not name.startswith('mmrazor.'):
            continue
        for key, value in list(vars(module).items()):
            for cls in getattr(value, '__mro__', ()):
                init = vars(cls).get('__init__')
                cells = getattr(init, '__closure__', None) or ()
                if 'mmcls' in [cell.cell_contents for cell in cells]:
                    found.add((name, key))
    return found


def test_nothing_that_mmrazor_looks_for_in_mmcls_is_a_placeholder():
    for name in ('models', 'datasets', 'engine'):
        importlib.import_module(f'mmrazor.{name}')
    assert not find_placeholders()
    # Others still find no package that is not installed.
    assert importlib.util.find_spec('mmcls') is None
    assert not [name for name in sys.modules if name.startswith('mmcls')]


def test_without_the_fix_parts_of_mmrazor_are_placeholders():
    done = run_without(
        'let_mmrazor_find_mmpretrain',
        """
        import torch
        import mmrazor.models, mmrazor.datasets
        from mmrazor.models import DeiTClsHead, KDSoftCELoss
        for build in (
            lambda: DeiTClsHead(num_classes=3, in_channels=4),
            lambda: KDSoftCELoss()(torch.ones(1, 2), torch.ones(1, 2)),
            lambda: mmrazor.datasets.PackCRDClsInputs(),
        ):
            try:
                build()
            except (ImportError, TypeError) as error:
                print('fails:', error)
        """,
    )
    assert done.stdout.count('fails:') == 3, done.stderr


def test_distillation_token_of_deit_has_a_classifier_of_its_own(tiny):
    """As MMRazor's ``configs/distill/mmcls/deit`` has it, but tiny."""
    student = tiny.classifier(tiny.vit())
    student['backbone']['type'] = 'DistilledVisionTransformer'
    student['head'] = dict(
        type='mmrazor.DeiTClsHead', num_classes=tiny.classes, in_channels=16
    )
    fc = dict(fc=dict(type='ModuleOutputs', source='head.fc'))
    dist = dict(fc=dict(type='ModuleOutputs', source='head.layers.head_dist'))
    model = tiny.build_distillation(
        architecture=student,
        teacher=tiny.classifier(tiny.resnet()),
        distiller=dict(
            student_recorders=dist,
            teacher_recorders=fc,
            distill_losses=dict(loss_hard=dict(type='CrossEntropyLoss')),
            loss_forward_mappings=dict(
                loss_hard=dict(
                    preds_S=tiny.record('fc', True),
                    preds_T=tiny.record('fc', False),
                )
            ),
        ),
        student_loss_weight=1.0,
    ).train()
    images, samples = tiny.batch(4)
    losses = model(images, samples, mode='loss')
    head = model.architecture.head
    class_token, dist_token = model.architecture.backbone(images)[-1]
    labels = torch.cat([sample.gt_label for sample in samples])
    expected = F.cross_entropy(head.layers.head(class_token), labels)
    assert torch.allclose(losses['student.loss'], expected)
    labels = model.teacher(images).argmax(1)
    expected = F.cross_entropy(head.layers.head_dist(dist_token), labels)
    assert torch.allclose(losses['distill.loss_hard'], expected)


def test_inputs_of_mmrazors_crd_are_packed():
    from mmrazor.datasets import PackCRDClsInputs

    packed = PackCRDClsInputs().transform(
        dict(
            img=np.zeros((4, 6, 3), np.uint8),
            gt_label=2,
            sample_idx=7,
            contrast_sample_idxs=np.array([7, 1, 3]),
        )
    )
    assert packed['inputs'].shape == (3, 4, 6)
    sample = packed['data_samples']
    assert sample.gt_label.tolist() == [2]
    assert sample.sample_idx == 7
    assert sample.contrast_sample_idxs.tolist() == [7, 1, 3]


# -------------------------------------------------------- editable installs


@pytest.fixture
def editable_package(tmp_path, monkeypatch) -> Path:
    """A package whose metadata lie elsewhere, as PEP 660 has it."""
    import pkg_resources

    source = tmp_path / 'source' / 'some_package'
    source.mkdir(parents=True)
    (source / '__init__.py').touch()
    metadata = tmp_path / 'site' / 'some_package-1.0.dist-info'
    metadata.mkdir(parents=True)
    (metadata / 'METADATA').write_text(
        'Metadata-Version: 2.1\nName: some_package\nVersion: 1.0\n'
    )
    (metadata / 'top_level.txt').write_text('some_package\n')
    monkeypatch.syspath_prepend(source.parent)
    site = pkg_resources.WorkingSet([str(metadata.parent)])
    monkeypatch.setattr(pkg_resources, 'working_set', site)
    return source


def test_package_installed_for_development_is_found(editable_package):
    from mmengine.config import config
    from mmengine.hub import hub

    for module in (config, hub):
        found = module.get_installed_path('some_package')
        assert Path(found) == editable_package


@pytest.mark.skipif(
    find_stack() == 'onedl', reason='the continuation asks the import system'
)
def test_without_the_fix_it_is_sought_beside_its_metadata(editable_package):
    from mmengine.utils import get_installed_path

    assert not Path(get_installed_path('some_package')).exists()


def test_other_packages_are_found_where_they_were():
    from mmengine.config import config
    from mmengine.utils import get_installed_path

    for package in ('mmpretrain', 'mmrazor'):
        found = config.get_installed_path(package)
        assert found == get_installed_path(package)
        assert (Path(found) / '__init__.py').exists()


# ------------------------------------------------ packages not installed


@pytest.fixture
def installs(monkeypatch):
    """What would have been run."""
    from mmengine.utils import package_utils

    commands = []
    monkeypatch.setattr(package_utils, 'call_command', commands.append)
    return commands


def _base_of_another_package(name, tmp_path):
    from mmengine.config import Config

    path = tmp_path / 'config.py'
    path.write_text(f"_base_ = '{name}'\n")
    return Config.fromfile(path)


def _python_base(name, tmp_path):
    from mmengine.config import Config

    package = name.partition('::')[0]
    path = tmp_path / 'config.py'
    path.write_text(
        'from mmengine.config import read_base\n\nwith read_base():\n'
        f'    from {package}.configs.some import *\n'
    )
    return Config.fromfile(path)


def _hub(name, tmp_path):
    from mmengine.hub import get_model

    return get_model(name)


def _hub_config(name, tmp_path):
    from mmengine.hub import get_config

    return get_config(name)


def _teacher(name, tmp_path):
    from mmcakd.models.teachers import build_teacher

    return build_teacher(dict(cfg_path=name, pretrained=False))


@pytest.mark.parametrize(
    'read',
    [_base_of_another_package, _python_base, _hub, _hub_config, _teacher],
)
@pytest.mark.parametrize(
    'name, cure',
    [
        ('mmcls::resnet/some.py', 'MMPretrain now: write mmpretrain::'),
        ('mmocr::some/other.py', 'mim install mmocr'),
    ],
)
def test_nothing_is_installed_unasked(read, name, cure, installs, tmp_path):
    with pytest.raises(ModuleNotFoundError) as caught:
        read(name, tmp_path)
    assert not installs
    assert '\n' not in str(caught.value)
    package = name.partition('::')[0]
    for named in (f'{package} is named', 'not installed', cure):
        assert named in str(caught.value)


def test_installed_packages_are_read(installs):
    from mmengine.hub import get_config

    cfg = get_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    assert cfg.model.backbone.depth == 18
    assert not installs


def test_distribution_may_have_another_name_than_its_module(installs):
    from mmengine.utils import install_package

    with pytest.raises(ModuleNotFoundError, match='mim install mmaction2'):
        install_package('mmaction2')
    install_package('mmrazor')
    assert not installs


# ------------------------------------------------------------- empty images


def test_empty_image_is_named_with_its_cure(tmp_path):
    from mmcv.transforms import LoadImageFromFile

    path = tmp_path / 'empty.png'
    path.touch()
    with pytest.raises(OSError, match='may be empty') as caught:
        LoadImageFromFile()(dict(img_path=str(path)))
    assert str(path) in str(caught.value)
    assert LoadImageFromFile(ignore_empty=True)(dict(img_path=path)) is None


def test_without_the_fix_an_empty_image_has_no_name(tmp_path, monkeypatch):
    from mmcv.transforms import LoadImageFromFile

    path = tmp_path / 'empty.png'
    path.touch()
    original = LoadImageFromFile.transform.__wrapped__
    monkeypatch.setattr(LoadImageFromFile, 'transform', original)
    with pytest.raises(Exception, match='imdecode') as caught:
        LoadImageFromFile()(dict(img_path=str(path)))
    assert 'empty.png' not in str(caught.value)


def test_other_images_are_loaded_or_named_as_before(tmp_path):
    import cv2
    from mmcv.transforms import LoadImageFromFile

    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), pixels)
    loaded = LoadImageFromFile()(dict(img_path=str(path)))
    assert np.array_equal(loaded['img'], pixels)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        LoadImageFromFile()(dict(img_path=str(tmp_path / 'nowhere.png')))
    path.write_text('no image')
    with pytest.raises(AssertionError, match='image.png'):
        LoadImageFromFile()(dict(img_path=str(path)))


# ----------------------------------------------------------- wrapped models


class Holder(torch.nn.Module):
    """A model with a classifier of timm as its part."""

    def __init__(self):
        from mmpretrain.models import TimmClassifier

        super().__init__()
        self.part = TimmClassifier('resnet10t', num_classes=3)


def test_classifier_of_timm_is_saved_and_loaded_as_part_of_a_model():
    from mmengine.runner.checkpoint import get_state_dict

    holder = Holder()
    saved = holder.state_dict()
    assert 'part.conv1.0.weight' in saved
    assert not any('model.' in key for key in saved)
    assert set(get_state_dict(holder)) == set(saved)
    # As it is alone: what is exported loads in MMPretrain unaided.
    alone = {f'part.{key}' for key in holder.part.state_dict()}
    assert alone == set(saved)
    other = Holder()
    other.load_state_dict(saved)
    for (key, p), q in zip(
        holder.named_parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(p, q), key


def test_without_the_fix_a_classifier_of_timm_does_not_load_as_a_part():
    done = run_without(
        'rename_weights_of_wrapped_models',
        """
        import torch
        from mmpretrain.models import TimmClassifier
        model = torch.nn.Sequential(TimmClassifier('resnet10t'))
        try:
            model.load_state_dict(model.state_dict())
        except RuntimeError as error:
            assert 'model.model.' in str(error)
        else:
            raise AssertionError('it loads')
        """,
    )
    assert done.returncode == 0, done.stderr


# ---------------------------- silent: hooks of a validation of two models

#: Validate on nothing, and list the hooks that are called.
VALIDATE = """
from types import SimpleNamespace
from mmrazor.engine import SingleTeacherDistillValLoop
called = []
loop = SingleTeacherDistillValLoop.__new__(SingleTeacherDistillValLoop)
loop._runner = SimpleNamespace(
    call_hook=lambda name, **kwargs: called.append(name),
    model=SimpleNamespace(eval=lambda: None),
)
loop.dataloader = type('', (list,), dict(dataset=[]))()
loop.evaluator = SimpleNamespace(evaluate=lambda size: dict(top1=7.0))
metrics = loop.run()
"""
EACH_HOOK = ['before_val', 'before_val_epoch', 'after_val_epoch', 'after_val']


def test_validation_of_two_models_calls_each_hook_once():
    found = {}
    exec(VALIDATE, found)
    assert found['called'] == EACH_HOOK
    assert found['metrics'] == {'top1': 7.0, 'teacher.top1': 7.0}


def test_without_the_fix_a_validation_begins_twice_and_ends_once():
    done = run_without(
        'call_validation_hooks_once',
        VALIDATE
        + """
assert called.count('before_val_epoch') == 2, called
assert called.count('after_val_epoch') == 1, called
""",
    )
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------- checkpoints


def test_what_mmengine_downloads_is_run_without_the_fix(tmp_path):
    done = run_without(
        'read_checkpoints_safely',
        f"""
        import os, torch
        from mmengine.runner import CheckpointLoader

        class Hostile:
            def __reduce__(self):
                return os.mkdir, ({str(tmp_path / 'mark')!r},)

        torch.hub.set_dir({str(tmp_path)!r})
        os.makedirs({str(tmp_path / 'checkpoints')!r})
        torch.save(Hostile(), {str(tmp_path / 'checkpoints/far.pth')!r})
        CheckpointLoader.load_checkpoint('https://models.example/far.pth')
        """,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'mark').is_dir()


def test_mmengine_opens_checkpoints_by_the_reader(tmp_path):
    from mmengine.runner import CheckpointLoader

    for path in (str(tmp_path / 'a.pth'), 'https://models.invalid/a.pth'):
        loader = CheckpointLoader._get_checkpoint_loader(path)
        assert loader.__module__ == compat.__name__
        # MMEngine tells users by it where a file comes from.
        assert loader.__name__ in ('load_from_local', 'load_from_http')


def test_resuming_is_checked_for_every_runner(tmp_path):
    from types import SimpleNamespace

    from mmengine.runner import Runner

    class Stub:
        device = None
        train_loop = SimpleNamespace()
        resume = Runner.resume

        def load_checkpoint(self, filename, map_location=None):
            return dict(meta={}, state_dict={})

    stub = Stub()
    with pytest.raises(RuntimeError, match='student.pth is no checkpoint'):
        stub.resume('student.pth')
    assert 'load_checkpoint' not in vars(stub)


# -------------------------------------------------------- settings without end


INFINITE = dict(
    clip=dict(max_norm=float('inf')),
    parts=[-float('inf'), (float('inf'), {1: float('inf')})],
    kinds={float('inf'), 1.0},
    narrow=np.float32('inf'),
    large=10**400,
    finite=1.5,
)


def test_configs_with_infinity_are_read_as_they_were_written(tmp_path):
    from mmengine.config import Config

    cfg = Config(INFINITE)
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == INFINITE
    cfg.dump(tmp_path / 'config.py')
    assert Config.fromfile(tmp_path / 'config.py').to_dict() == INFINITE
    text = Config(dict(a=float('nan'))).pretty_text
    assert text.strip() == "a = float('nan')"
    # Nothing else is written in another way.
    assert Config(dict(a=1.5, b='inf')).pretty_text == "a = 1.5\nb = 'inf'\n"


def test_without_the_fix_a_config_with_infinity_cannot_be_read():
    done = run_without(
        'spell_out_infinite_settings',
        """
        from mmengine.config import Config
        text = Config(dict(a=float('inf'))).pretty_text
        try:
            Config.fromstring(text, '.py')
        except NameError as error:
            assert "'inf' is not defined" in str(error)
        else:
            raise AssertionError('it is read')
        """,
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------- MMRazor beside a newer mmcv


def test_mmrazor_is_imported_beside_a_newer_mmcv():
    done = run_fresh("""
        import mmcv
        mmcv.__version__ = '2.3.6'
        import mmcakd
        import mmrazor.models
        assert mmcv.__version__ == '2.3.6'
    """)
    assert done.returncode == 0, done.stderr


def test_without_the_fix_mmrazor_refuses_a_newer_mmcv():
    done = run_fresh("""
        import mmcv
        mmcv.__version__ = '2.3.6'
        import mmrazor
    """)
    assert 'Please install mmcv>=2.0.0rc1, <=2.1.0' in done.stderr


# ------------------------------------------------------- standard output


def test_import_prints_nothing():
    done = run_fresh('import mmcakd.engine, mmcakd.models')
    assert not done.returncode and not done.stdout, done.stderr


def test_what_data_sets_print_goes_to_the_standard_error(capsys, monkeypatch):
    def import_module(name):
        assert name == 'mmpretrain.datasets'
        print('Could not import OneDL')

    monkeypatch.setattr(compat.importlib, 'import_module', import_module)
    compat.print_nothing_when_imported()
    assert capsys.readouterr() == ('', 'Could not import OneDL\n')


# ------------------------------------------------ names that numpy dropped


def test_mmrazor_encodes_a_candidate_of_a_search():
    from mmrazor.models.task_modules.predictor.metric_predictor import (
        MetricPredictor,
    )

    predictor = MetricPredictor.__new__(MetricPredictor)
    group = SimpleNamespace(choices=[8, 16, 32])
    predictor.search_groups = {0: [group], 1: [group]}
    vectors = predictor.model2vector({0: 16, 1: 32})
    assert vectors['normal_vector'] == [1, 2]
    assert list(map(int, vectors['onehot_vector'])) == [0, 1, 0, 0, 0, 1]


def test_mmpretrain_computes_the_recall_of_a_retrieval():
    from mmpretrain.evaluation.metrics.retrieval import RetrievalRecall

    recall = RetrievalRecall.calculate(
        [[0, 1], [2, 3]],
        [[1], [0]],
        topk=2,
        pred_indices=True,
        target_indices=True,
    )
    assert [float(value) for value in recall] == [50.0]


def test_other_modules_see_no_dropped_names(monkeypatch):
    from mmrazor.models.task_modules.predictor import metric_predictor

    monkeypatch.setattr(metric_predictor, 'np', np)
    compat.restore_dropped_names_of_numpy()
    assert metric_predictor.np.int is int
    assert metric_predictor.np.zeros is np.zeros
    assert not hasattr(np, 'int')
    patched = metric_predictor.np
    compat.restore_dropped_names_of_numpy()
    assert metric_predictor.np is patched


# --------------------------------------------------- weights only, always


class Trap:
    """Makes the folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class Store:
    """A file store that MMEngine reads through."""

    def __init__(self, file):
        self.file = file

    def get(self, name):
        return self.file.read_bytes()


@pytest.fixture
def trap(tmp_path):
    torch.save(dict(state_dict=Trap(tmp_path / 'sprung')), tmp_path / 'trap')
    yield tmp_path / 'trap'
    assert not (tmp_path / 'sprung').exists()


def test_no_loader_of_mmengine_unpickles(trap, monkeypatch):
    from mmengine.runner import CheckpointLoader, checkpoint

    monkeypatch.setattr(
        checkpoint, 'get_file_backend', lambda *args, **kwargs: Store(trap)
    )
    monkeypatch.setenv('MMENGINE_HOME', str(trap.parent))
    monkeypatch.setattr(
        checkpoint, 'get_external_models', lambda: dict(trap='trap')
    )
    for name in (str(trap), 's3://bucket/trap', 'openmmlab://trap'):
        with pytest.raises(Exception, match='(?i)weights|unpickl|code|trap'):
            CheckpointLoader.load_checkpoint(name, 'cpu')


def test_fall_back_to_unpickling_is_taken_away(trap, monkeypatch):
    from mmengine.runner import checkpoint

    def falls_back(file, map_location=None, weights_only=None):
        return torch.load(file, map_location, weights_only=False)

    monkeypatch.setattr(
        checkpoint, '_safe_torch_load', falls_back, raising=False
    )
    compat.never_unpickle()
    for asked in (None, True, False):
        with pytest.raises(UnpicklingError, match='(?i)weights.only'):
            checkpoint._safe_torch_load(trap, weights_only=asked)
    plain = trap.with_name('plain')
    torch.save(dict(weight=torch.ones(2)), plain)
    assert checkpoint._safe_torch_load(plain, 'cpu')['weight'].sum() == 2


# ---------------------------------------------- hooks and layer-wise decay


def decay_by_layer(model):
    from mmengine.optim import build_optim_wrapper

    cfg = dict(
        optimizer=dict(type='AdamW', lr=1.0),
        constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    return build_optim_wrapper(model, cfg).optimizer.param_groups


def test_without_the_fix_layer_wise_rates_need_a_weight_decay(
    tiny, monkeypatch
):
    from mmpretrain.engine.optimizers import (
        LearningRateDecayOptimWrapperConstructor as Constructor,
    )

    model = tiny.build(tiny.classifier(tiny.convnext()))
    assert {group['weight_decay'] for group in decay_by_layer(model)} == {0.01}
    monkeypatch.setattr(
        Constructor, '__init__', Constructor.__init__.__wrapped__
    )
    with pytest.raises(KeyError, match='weight_decay'):
        decay_by_layer(model)


@pytest.mark.parametrize('mends', [True, False])
def test_batch_augments_that_are_switched_on_mix(tiny, monkeypatch, mends):
    from types import SimpleNamespace

    from mmpretrain.engine.hooks import SwitchRecipeHook
    from mmpretrain.models.utils import data_preprocessor as module

    if not mends:
        switch = SwitchRecipeHook._switch_batch_augments.__wrapped__
        monkeypatch.setattr(
            SwitchRecipeHook, '_switch_batch_augments', staticmethod(switch)
        )
        monkeypatch.setattr(
            module,
            'batch_label_to_onehot',
            module.batch_label_to_onehot.__wrapped__,
        )
    preprocessor = module.ClsDataPreprocessor(num_classes=5)
    model = SimpleNamespace(data_preprocessor=preprocessor)
    logger = SimpleNamespace(info=lambda text: None)
    runner = SimpleNamespace(model=model, logger=logger, epoch=0)
    augments = dict(augments=dict(type='CutMix', alpha=1.0))
    hook = SwitchRecipeHook(
        [
            dict(action_epoch=1, batch_augments=augments),
            dict(action_epoch=2, batch_augments=None),
        ]
    )
    np.random.seed(1)
    scores = []
    for runner.epoch in range(2):
        hook.before_train_epoch(runner)
        images, samples = tiny.batch(4)
        batch = dict(inputs=images, data_samples=samples)
        batch = preprocessor(batch, training=True)
        scores.append([s.get('gt_score') for s in batch['data_samples']])
    if mends:
        assert any(score.max() < 1 for score in scores[0])
        # What cross-entropy takes for probabilities.
        assert all(score.is_floating_point() for score in scores[1])
    else:
        assert scores[0] == [None] * 4


# --------------------------------------------------------------------- all


def test_applying_the_fixes_again_changes_nothing():
    base = importlib.import_module('mmrazor.models.algorithms.base')

    from mmcv.transforms import LoadImageFromFile
    from mmengine.config import config
    from mmengine.hub import hub
    from mmpretrain.engine.hooks import SwitchRecipeHook
    from mmpretrain.engine.optimizers import (
        LearningRateDecayOptimWrapperConstructor,
    )
    from mmpretrain.models import TimmClassifier
    from mmpretrain.models.utils import data_preprocessor
    from mmrazor.models import DeiTClsHead

    def state():
        return [
            config.get_installed_path,
            hub.get_installed_path,
            LoadImageFromFile.transform,
            TimmClassifier._remove_state_dict_prefix,
            LearningRateDecayOptimWrapperConstructor.__init__,
            SwitchRecipeHook.before_train,
            SwitchRecipeHook._switch_batch_augments,
            data_preprocessor.batch_label_to_onehot,
            base.OrderedDict,
            DeiTClsHead.pre_logits,
            sys.modules[BACKENDS],
            dir(torch.ops.torchvision),
        ]

    before = state()
    compat.apply()
    assert state() == before
