import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def version() -> str:
    scope = {}
    exec((ROOT / 'mmcakd' / 'version.py').read_text('utf-8'), scope)
    return scope['__version__']


def requirements(*names: str) -> list:
    found = {}
    for name in names:
        text = (ROOT / 'requirements' / f'{name}.txt').read_text('utf-8')
        for line in text.splitlines():
            line = line.partition('#')[0].strip()
            if line.startswith('-r '):
                found |= dict.fromkeys(requirements(line[3:-4]))
            elif line:
                found[line] = None
    return list(found)


def long_description() -> str:
    readme = ROOT / 'README.md'
    return readme.read_text('utf-8') if readme.is_file() else ''


class BuildWithMim(build_py):
    """Put configs and tools where MIM and MMEngine look: `mmcakd/.mim`.

    A wheel gets copies. A development install gets links in the checkout, so
    that an edited config is the one that is used.
    """

    resources = ('configs', 'tools', 'demo', 'model-index.yml')

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            self.fill(ROOT / 'mmcakd' / '.mim', self.link)
        else:
            mim = Path(self.build_lib) / 'mmcakd' / '.mim'
            shutil.rmtree(mim, ignore_errors=True)
            self.fill(mim, self.copy)

    def fill(self, mim: Path, put) -> None:
        mim.mkdir(parents=True, exist_ok=True)
        for name in self.resources:
            if (ROOT / name).exists():
                put(ROOT / name, mim / name)

    @staticmethod
    def link(source: Path, target: Path) -> None:
        if target.is_symlink():
            target.unlink()
        try:
            target.symlink_to(os.path.relpath(source, target.parent))
        except OSError as error:
            print(f'{target} is left out: {error}')

    @staticmethod
    def copy(source: Path, target: Path) -> None:
        if source.is_dir():
            # The shell scripts only make sense in a checkout.
            ignored = shutil.ignore_patterns(
                '__pycache__', 'setup_*.sh', 'run_tests.sh', 'quickstart.sh'
            )
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy2(source, target)


# OpenMMLab's packages are extras, since two stacks of them exclude each other:
# one of lite, full, downstream and onedl.
lite = ('classic', 'lite')
extras = dict(
    classic=requirements(*lite),
    lite=requirements(*lite),
    full=requirements('classic', 'full'),
    downstream=requirements('classic', 'downstream'),
    onedl=requirements('onedl'),
    huggingface=requirements('huggingface'),
    optional=requirements('optional'),
    tests=requirements('tests'),
    dev=requirements(*lite, 'optional', 'tests'),
    all=requirements(*lite, 'optional', 'huggingface'),
)

setup(
    name='mmcakd',
    version=version(),
    description='Cross-architecture knowledge distillation for OpenMMLab',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    author='mmcakd contributors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords=(
        'knowledge distillation, cross-architecture, vision transformer, '
        'model compression, OpenMMLab, PyTorch'
    ),
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    packages=find_packages(include=['mmcakd', 'mmcakd.*']),
    include_package_data=True,
    python_requires='>=3.11',
    install_requires=requirements('runtime'),
    extras_require=extras,
    cmdclass=dict(build_py=BuildWithMim),
    zip_safe=False,
)
