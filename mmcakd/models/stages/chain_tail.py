"""A chain of modules, run from the end of a stage."""

import torch

from .tail import Tail


class ChainTail(Tail):
    """What lies behind a stage of a network that is a chain of modules.

    Tokens are viewed in the layout that the network works in, and back.
    """

    def __init__(self, backbone, from_stage, to_stage, *args, **kwargs):
        super().__init__(backbone, from_stage, to_stage, *args, **kwargs)
        start, *behind = self.taps[from_stage - 1 : to_stage]
        self.steps = [path for tap in behind for path in tap.steps]
        skipped = behind[0].transition if self.skip_transition else 0
        if skipped:
            # The blocks that follow keep the grid and the layout.
            start = behind[0].raw or behind[0]
            entry = self.steps[skipped - 1]
            self.steps = self.steps[skipped:]
        else:
            entry = start.source
        if self.end.raw:
            self.steps.append(self.end.source)
        self.take(start, entry)

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.lay_out(tokens)
        for path in self.steps:
            x = self.backbone.get_submodule(path)(x)
        return x
