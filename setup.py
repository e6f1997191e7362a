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


def requirements(name: str) -> list:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text('utf-8')
    lines = (line.partition('#')[0].strip() for line in lines.splitlines())
    return [line for line in lines if line]


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


extras = {name: requirements(name) for name in ('lite', 'optional', 'tests')}
extras['all'] = sum(extras.values(), [])

setup(
    name='mmcakd',
    version=version(),
    description='Cross-architecture knowledge distillation for OpenMMLab',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    author='mmcakd contributors',
    license='Apache-2.0',
    keywords='knowledge distillation, vision transformer, OpenMMLab',
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['mmcakd', 'mmcakd.*']),
    include_package_data=True,
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require=extras,
    cmdclass=dict(build_py=BuildWithMim),
    zip_safe=False,
)
