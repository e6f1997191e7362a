"""A Runner says what is wrong with a file before it trains."""

import pytest
import torch
from mmengine.runner import Runner


@pytest.fixture
def start(short_run):
    """Start a training from a file, on one Runner for all of a test."""

    def start(path, resume: bool) -> None:
        cfg = short_run(load_from=str(path), resume=resume)
        cfg.experiment_name += f'_{path.stem}'
        Runner.from_cfg(cfg).train()

    return start


@pytest.mark.parametrize('resume', [True, False])
def test_a_cut_file_ends_in_a_sentence(resume, start, tmp_path):
    path = tmp_path / 'cut.pth'
    torch.save(dict(state_dict=dict(weight=torch.ones(999))), path)
    path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(RuntimeError, match='truncated or damaged') as caught:
        start(path, resume)
    assert str(path) in str(caught.value)


def test_weights_alone_are_not_resumed_from(tiny, start, tmp_path):
    path = tmp_path / 'student.pth'
    weights = tiny.build_distillation().state_dict()
    torch.save(dict(state_dict=weights, meta=dict(cfg='a = 1')), path)
    with pytest.raises(RuntimeError, match=r'no meta\.epoch') as caught:
        start(path, resume=True)
    assert str(path) in str(caught.value)
    assert 'load_from' in str(caught.value)


def test_nothing_in_a_checkpoint_is_run_to_resume_from_it(
    short_run, start, tmp_path
):
    cfg = short_run()
    cfg.train_cfg.max_epochs = 1
    Runner.from_cfg(cfg).train()
    path = tmp_path / 'run' / 'epoch_1.pth'
    checkpoint = torch.load(path)
    mark = tmp_path / 'mark'
    for key in ('cfg', 'config'):
        checkpoint['meta'][key] = f'a = open({str(mark)!r}, "w")'
    path = tmp_path / 'hostile.pth'
    torch.save(checkpoint, path)
    start(path, resume=True)
    assert not mark.exists()
