import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

REPO = Path(__file__).resolve().parents[2]

# A Python that answers from the files beside it and notes what it is asked.
FAKE_PYTHON = """#!/bin/bash
cd {root}
echo "$* FORCE_CUDA=$FORCE_CUDA MAX_JOBS=$MAX_JOBS" >> asked
case "$*" in
*hashlib*) cat > /dev/null; echo stamp;;
*torch.__version__*) cat torch;;
*get_device_capability*) cat gpus;;
*CUDA_HOME*) echo {root}/toolkit;;
*include*) echo {root}/headers;;
*"pip "*" wheel "*)
    touch building
    [ ! -e slow ] || sleep 0.5
    [ ! -e broken_compiler ] || exit 1
    folder="$*"; folder=${{folder#*--wheel-dir }}
    cp good.whl "${{folder% *}}/mmcv-2.1.0-cp311-cp311-linux_x86_64.whl";;
*" uninstall "*) rm -f installed;;
*" install "*downstream.txt) [ ! -e offline ] && touch installed;;
*check_downstream.py) [ ! -e useless ];;
"- "*) exec {python} "$@";;
-) case "$(cat)" in *mmsegmentation*) [ -e installed ];; esac;;
esac
"""


class Machine:
    """A folder with all that the script asks for, and nothing real."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels = root / 'wheels'
        self.script(
            'v/bin/python',
            FAKE_PYTHON.format(root=root, python=sys.executable),
        )
        self.script('bin/c++', '#!/bin/sh\n')
        (root / 'v' / 'pyvenv.cfg').touch()
        (root / 'headers').mkdir()
        (root / 'headers' / 'Python.h').touch()
        (root / 'gpus').touch()
        with ZipFile(root / 'good.whl', 'w') as wheel:
            wheel.writestr('mmcv/_ext.so', 'operators' * 99)
        self.has_torch('2.13.0+cpu')

    def script(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def has_torch(self, version: str, cuda: str = 'none') -> None:
        facts = f'{version} {cuda} cpython-311 linux-x86_64 glibc 2.36\n'
        (self.root / 'torch').write_text(facts)

    def has_toolkit(self, release: str) -> None:
        self.script(
            'toolkit/bin/nvcc',
            '#!/bin/sh\n'
            f'echo "Cuda compilation tools, release {release}, V{release}.88"',
        )

    def start(self, **environment) -> subprocess.Popen:
        return subprocess.Popen(
            ['bash', REPO / 'tools/setup_downstream.sh'],
            env=dict(
                PATH=f'{self.root}/bin:/usr/bin:/bin',
                MMCAKD_VENV=str(self.root / 'v'),
                MMCAKD_WHEELS=str(self.wheels),
            )
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def set_up(self, code: int = 0, **environment) -> str:
        process = self.start(**environment)
        printed = process.communicate(timeout=60)[0]
        assert process.returncode == code, printed
        return printed

    def asked(self, *words: str) -> list[str]:
        """What was asked of Python since the last call, with these words."""
        path = self.root / 'asked'
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line for line in lines if all(w in line for w in words)]

    def folders(self) -> list[str]:
        return sorted(p.parent.name for p in self.wheels.glob('*/*.whl'))


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_wheel_is_kept_under_all_that_it_depends_on(machine):
    machine.set_up()
    assert machine.folders() == [
        'mmcv-2.1.0_torch-2.13.0+cpu_cpu_cpython-311_linux-x86_64_glibc_2.36'
    ]
    (folder,) = machine.wheels.iterdir()
    assert not list(folder.glob('build.*'))


def test_full_mmcv_takes_the_place_of_the_light_one(machine):
    machine.set_up()
    steps = machine.asked('pip ')
    (out,) = (i for i, step in enumerate(steps) if ' uninstall ' in step)
    (into,) = (i for i, step in enumerate(steps) if '.whl' in step)
    assert 'mmcv mmcv-lite' in steps[out]
    assert out < into


def test_everything_in_place_is_left_alone(machine):
    machine.set_up()
    assert machine.asked('pip ')
    assert machine.set_up() == ''
    assert not machine.asked('pip --')


def test_another_environment_takes_the_wheel_that_is_there(machine):
    machine.set_up()
    assert machine.asked(' wheel ')
    (machine.root / 'v/.mmcakd-downstream-stamp').unlink()
    machine.set_up(CXX='no-compiler-is-needed')
    assert not machine.asked(' wheel ')
    assert (machine.root / 'v/.mmcakd-downstream-stamp').exists()


def test_light_mmcv_that_came_back_is_replaced_without_a_build(machine):
    machine.set_up()
    machine.asked()
    (machine.root / 'installed').unlink()
    machine.set_up()
    pip = machine.asked('pip ')
    assert any(' uninstall ' in line for line in pip)
    assert not any(' wheel ' in line for line in pip)


def test_wheel_of_one_torch_is_not_used_with_another(machine):
    machine.set_up()
    machine.has_torch('2.12.1+cpu')
    machine.asked()
    machine.set_up()
    assert machine.asked(' wheel ')
    assert [name.split('_')[1] for name in machine.folders()] == [
        'torch-2.12.1+cpu',
        'torch-2.13.0+cpu',
    ]


@pytest.mark.parametrize('broken', ['cut short', 'without operators'])
def test_broken_wheel_is_built_anew(machine, broken):
    machine.set_up()
    machine.asked()
    (wheel,) = machine.wheels.glob('*/*.whl')
    if broken == 'cut short':
        wheel.write_bytes(wheel.read_bytes()[:-30])
    else:
        with ZipFile(wheel, 'w') as light:
            light.writestr('mmcv/version.py', '')
    (machine.root / 'installed').unlink()
    machine.set_up()
    assert machine.asked(' wheel ')
    good = (machine.root / 'good.whl').read_bytes()
    assert wheel.read_bytes() == good


def test_failed_build_is_told_and_leaves_no_wheel(machine):
    (machine.root / 'broken_compiler').touch()
    printed = machine.set_up(code=1)
    assert 'the build of mmcv==2.1.0 failed' in printed
    assert not list(machine.wheels.glob('*/*.whl'))
    assert not list(machine.wheels.glob('*/build.*'))
    assert not machine.asked(' uninstall ')
    (machine.root / 'broken_compiler').unlink()
    machine.set_up()


def test_interrupted_installation_is_finished_later(machine):
    (machine.root / 'offline').touch()
    assert 'did not finish' in machine.set_up(code=1)
    (machine.root / 'offline').unlink()
    machine.asked()
    machine.set_up()
    assert not machine.asked(' wheel ')
    assert machine.set_up() == ''


def test_installation_that_does_not_work_is_told(machine):
    (machine.root / 'useless').touch()
    printed = machine.set_up(code=1)
    assert 'does not work' in printed and str(machine.wheels) in printed
    (machine.root / 'useless').unlink()
    machine.asked()
    machine.set_up()
    assert machine.asked('check_downstream.py')


def test_two_at_a_time_build_one_wheel(machine, tmp_path_factory):
    if shutil.which('flock') is None:
        pytest.skip('this system has no flock: both build, and one wheel wins')
    other = Machine(tmp_path_factory.mktemp('other'))
    other.wheels = machine.wheels
    (machine.root / 'slow').touch()
    (other.root / 'slow').touch()
    both = [machine.start(), other.start()]
    for process in both:
        printed = process.communicate(timeout=60)[0]
        assert process.returncode == 0, printed
    builds = machine.asked(' wheel ') + other.asked(' wheel ')
    assert len(builds) == 1
    assert len(machine.folders()) == 1


def test_build_uses_no_cache_of_pip_and_the_jobs_that_are_asked_for(machine):
    machine.set_up(MAX_JOBS='3')
    (build,) = machine.asked(' wheel ')
    # pip's own cache would give the operators of another torch.
    for part in ('--no-cache-dir', '--no-build-isolation', '--no-deps'):
        assert part in build
    assert 'MAX_JOBS=3' in build


def test_missing_compiler_is_named_before_anything_is_changed(machine):
    printed = machine.set_up(code=1, CXX='no-such-compiler')
    assert 'C++ compiler' in printed and 'no-such-compiler' in printed
    assert not machine.asked(' uninstall ')


def test_missing_headers_of_python_are_named(machine):
    (machine.root / 'headers' / 'Python.h').unlink()
    printed = machine.set_up(code=1)
    assert f'{machine.root}/headers/Python.h is not found' in printed


# ------------------------------------------------------------------- CUDA


def test_operators_for_the_gpus_of_this_machine(machine):
    machine.has_torch('2.13.0+cu130', '13.0')
    machine.has_toolkit('13.1')
    (machine.root / 'gpus').write_text('8.0 9.0\n')
    machine.set_up()
    (build,) = machine.asked(' wheel ')
    assert 'FORCE_CUDA=1' in build
    (key,) = machine.folders()
    assert 'torch-2.13.0+cu130_cuda-13.0_8.0_9.0_cpython-311' in key
    # Other GPUs need other operators.
    machine.set_up(TORCH_CUDA_ARCH_LIST='8.6;9.0+PTX')
    assert machine.asked(' wheel ')
    assert any('cuda-13.0_8.6_9.0+PTX' in name for name in machine.folders())


def test_missing_toolkit_is_named_with_two_ways_out(machine):
    machine.has_torch('2.13.0+cu130', '13.0')
    (machine.root / 'gpus').write_text('9.0\n')
    printed = machine.set_up(code=1)
    assert f'{machine.root}/toolkit/bin/nvcc does not run' in printed
    assert 'toolkit 13.0' in printed and 'CUDA_HOME' in printed
    assert 'MMCAKD_MMCV_OPS=cpu' in printed
    assert not machine.asked(' uninstall ')


def test_toolkit_of_another_cuda_is_refused(machine):
    machine.has_torch('2.13.0+cu130', '13.0')
    machine.has_toolkit('12.6')
    (machine.root / 'gpus').write_text('9.0\n')
    printed = machine.set_up(code=1)
    assert 'CUDA 13.0' in printed and 'is of 12.6' in printed


def test_gpus_to_build_for_are_asked_where_none_is_visible(machine):
    machine.has_torch('2.13.0+cu130', '13.0')
    printed = machine.set_up(code=1)
    assert 'no GPU is visible' in printed
    assert 'TORCH_CUDA_ARCH_LIST' in printed


def test_cpu_operators_can_be_had_with_torch_for_cuda(machine):
    machine.has_torch('2.13.0+cu130', '13.0')
    machine.set_up(MMCAKD_MMCV_OPS='cpu')
    (build,) = machine.asked(' wheel ')
    assert 'FORCE_CUDA=0' in build
    assert 'torch-2.13.0+cu130_cpu_' in machine.folders()[0]


@pytest.mark.parametrize(
    ('operators', 'cause'),
    [('cuda', 'is built without CUDA'), ('tpu', 'cpu or cuda, not tpu')],
)
def test_operators_that_cannot_be_had_are_refused(machine, operators, cause):
    assert cause in machine.set_up(code=1, MMCAKD_MMCV_OPS=operators)
