"""From any layout to a map and back."""

import pytest
import torch

from mmcakd.models.stages import (
    read_grid,
    to_map,
    to_stage_tokens,
    to_tokens,
)

MAP = torch.arange(2 * 3 * 2 * 5.0).view(2, 3, 2, 5)


def test_a_map_is_returned_as_it_is():
    assert to_map(MAP) is MAP


def test_channels_last_becomes_channels_first():
    nhwc = MAP.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(to_map(nhwc, 'NHWC'), MAP)


@pytest.mark.parametrize('extra', [0, 1, 5])
def test_tokens_are_read_row_by_row_behind_the_extra_ones(extra):
    rows = [MAP[:, :, h, w] for h in range(2) for w in range(5)]
    tokens = torch.stack([*[-torch.ones(2, 3)] * extra, *rows], dim=1)
    assert torch.equal(to_map(tokens, 'NLC', (2, 5), extra), MAP)


@pytest.mark.parametrize('extra', [0, 1, 5])
def test_stage_tokens_leave_nothing_out(extra):
    others = torch.rand(2, extra, 3)
    tokens = torch.cat((others, to_tokens(MAP)), dim=1)
    stage = to_stage_tokens(tokens, 'NLC', (2, 5), extra)
    assert torch.equal(stage.map, MAP)
    assert torch.equal(stage.extra, others)


def test_channels_last_are_tokens_without_extra_ones():
    stage = to_stage_tokens(MAP.permute(0, 2, 3, 1), 'NHWC')
    assert torch.equal(stage.map, MAP)
    assert stage.extra.shape == (2, 0, 3)


def test_convolutional_map_is_no_stage_of_tokens():
    assert to_stage_tokens(MAP, 'NCHW') is MAP


@pytest.mark.parametrize(
    ('inputs', 'outputs'),
    [
        ((None,), MAP),
        ((None,), (None, torch.tensor([2, 5]))),
        ((None, (2, 5)), torch.rand(2, 10, 3)),
    ],
)
def test_grid_is_read_off_a_map_an_output_or_an_input(inputs, outputs):
    assert read_grid(inputs, outputs) == (2, 5)


def test_map_becomes_tokens_row_by_row():
    tokens = to_tokens(MAP)
    assert tokens.shape == (2, 10, 3)
    assert torch.equal(tokens[:, 7], MAP[:, :, 1, 2])
    assert torch.equal(to_map(tokens, 'NLC', (2, 5)), MAP)


def test_tokens_stay_tokens():
    tokens = torch.rand(2, 10, 3)
    assert to_tokens(tokens) is tokens


@pytest.mark.parametrize(
    ('grid', 'extra'), [((3, 3), 0), ((2, 5), 1), (None, 0)]
)
def test_tokens_that_do_not_fill_the_grid_are_refused(grid, extra):
    with pytest.raises(ValueError, match='do not fill the grid') as caught:
        to_map(torch.rand(2, 10, 3), 'NLC', grid, extra)
    assert str(10 - extra) in str(caught.value)
    assert 'extra_tokens' in str(caught.value)
