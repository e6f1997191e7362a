"""Losses that talk between processes."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture(scope='session')
def run_worker(tmp_path_factory, pick_port) -> Callable[[str], list]:
    """Run a worker alone, and two of them together.

    A worker is a script beside this file that saves what it found as
    ``OUT_WORLD_RANK.pth``. The result is what it found alone, and what each
    of the two did.
    """

    def run(name: str) -> list:
        worker = HERE / name
        out = str(tmp_path_factory.mktemp(worker.stem) / 'result')
        path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
        env = {
            **os.environ,
            'PYTHONPATH': path,
            'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': pick_port(),
            'WORLD_SIZE': '2',
            'OMP_NUM_THREADS': '1',
        }
        processes = [
            subprocess.Popen(
                [sys.executable, '-W', 'ignore', worker, out],
                env=env | dict(RANK=str(rank)),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(sys, 'argv', [str(worker), out])
                monkeypatch.setenv('RANK', '0')
                monkeypatch.setenv('WORLD_SIZE', '1')
                runpy.run_path(str(worker), run_name='__main__')
            for process in processes:
                said, _ = process.communicate(timeout=300)
                assert process.returncode == 0, said[-3000:]
        finally:
            for process in processes:
                process.kill()
        return [
            torch.load(f'{out}_{run}.pth') for run in ('1_0', '2_0', '2_1')
        ]

    return run
