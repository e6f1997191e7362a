"""What is checked of every family, whatever package it comes from."""

from copy import deepcopy
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmcakd.models.recorders import StageOutputsRecorder
from mmcakd.models.stages import StageTokens, build_tail, find_taps, to_tokens


def ready(net: nn.Module) -> nn.Module:
    """A frozen network in eval mode, of which no parameter has no effect."""
    for parameter in net.parameters():
        if parameter.ndim < 2 or not parameter.any():
            # Norms, biases, layer scales and positions that start at 0 or 1.
            nn.init.uniform_(parameter, 0.5, 1.0)
    net.eval()
    return net.requires_grad_(False)


def record(net: nn.Module, images: torch.Tensor, **kwargs) -> tuple:
    """The four stages of one forward."""
    recorder = StageOutputsRecorder(**kwargs)
    recorder.initialize(net)
    with recorder, torch.no_grad():
        net(images)
    return recorder.get_record_data()


def shapes(stages: tuple) -> list[tuple]:
    """``(C, H, W)`` of each stage, or ``(C, H, W, extra tokens)``."""
    return [
        (*stage.map.shape[1:], stage.extra.shape[1])
        if isinstance(stage, StageTokens)
        else tuple(stage.shape[1:])
        for stage in stages
    ]


def check_overwriting(net: nn.Module, images: torch.Tensor) -> None:
    """Compare each record with a copy made when its module returned."""
    copies = {}
    modules = dict(net.named_modules())
    for index, tap in enumerate(find_taps(net)):
        modules[tap.source].register_forward_hook(
            lambda module, inputs, outputs, index=index, tap=tap: (
                copies.update({index: tap.pick(outputs).clone()})
            )
        )
    recorder = StageOutputsRecorder()
    recorder.initialize(net)
    with recorder:
        net(images)
    assert set(copies) == set(range(len(find_taps(net))))
    for index, copy in copies.items():
        (kept,) = recorder.data_buffer[index]
        assert torch.equal(kept, copy)


def check_replay(net: nn.Module, images: torch.Tensor) -> None:
    """Replay every pair of stages, with gradient, to the very bit."""
    count = len(find_taps(net))
    tails = {
        pair: build_tail(net, *pair)
        for pair in combinations(range(1, count + 1), 2)
    }
    stages = [to_tokens(stage) for stage in record(net, images)]
    for (start, end), tail in tails.items():
        tokens = stages[start - 1].clone().requires_grad_()
        tail(tokens).square().sum().backward()
        assert tokens.grad.isfinite().all()
        assert (tokens.grad.abs().sum((1, 2)) > 0).all()
        # As the network itself ran: attention may differ with grad.
        with torch.no_grad():
            assert torch.equal(tail(tokens), stages[end - 1])
            # It is made of these tokens and not of what is remembered.
            assert not torch.equal(tail(tokens.flip(0)), stages[end - 1])
    assert not [n for n, p in net.named_parameters() if p.grad is not None]
    # Nothing is left behind in the network, nor in a copy of it.
    for network in (net, deepcopy(net)):
        again = [to_tokens(stage) for stage in record(network, images)]
        for stage, own in zip(again, stages, strict=True):
            assert torch.equal(stage, own)


@pytest.fixture(scope='session')
def checks() -> SimpleNamespace:
    """The above."""
    return SimpleNamespace(
        ready=ready,
        record=record,
        shapes=shapes,
        overwriting=check_overwriting,
        replay=check_replay,
    )
