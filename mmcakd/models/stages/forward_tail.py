"""A network's own forward, run once more from the end of a stage."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from .tail import Tail, repeat
from .taps import Tap


@dataclass(frozen=True)
class Blank:
    """A feature of which only the shape is remembered."""

    shape: Sequence[int]


class Call(NamedTuple):
    """What is remembered of a module's call: its batch and its outputs."""

    batch: int
    outputs: Any


#: Stands for the stage itself among a module's outputs.
STAGE = object()


class EndReached(Exception):
    """The stage at the end of a tail is there."""


class ForwardTail(Tail):
    """What lies behind a stage of a network whose stages are no chain.

    The network's own ``forward`` runs once more, with its positions, class
    tokens and whatever else it does between its modules, up to the end of the
    tail. The modules of the earlier stages compute nothing. Each returns
    NaN, in the shapes of the network's last forward, and the module that ends
    the stage returns the given features: what passes them by would be seen.
    Where that module returns features of other branches, too, they are those
    of the network's last forward, on the same images.

    Raises:
        RuntimeError: More reaches the end of the tail than the features, or
            gradients would not reach them.
    """

    def __init__(self, backbone, from_stage, to_stage, *args, **kwargs):
        super().__init__(backbone, from_stage, to_stage, *args, **kwargs)
        start = self.taps[from_stage - 1]
        if self.skip_transition:
            start = self.taps[from_stage].entry or start
        if self.fresh_extra_tokens:
            self._check_freshness(start)
        # A network may call what merges patches of a stage by itself.
        entries = [tap.entry.source for tap in self.taps if tap.entry]
        self.earlier = {*beside(backbone, start.source), *entries}
        self.earlier.discard(start.source)
        #: What the earlier modules did in the network's last forward.
        self._calls: dict[str, list[Call]] = defaultdict(list)
        self._first: str | None = None
        self._ended = False
        self._is_tight = False
        for path in self.earlier:
            self.watch(path, partial(self._remember_call, path))
        self.take(start, start.source)

    def _check_freshness(self, start: Tap) -> None:
        late = start.extra_tokens and not self.taps[0].extra_tokens
        if start.has_branches or late:
            raise ValueError(
                f'the stages of {type(self.backbone).__name__} cannot be '
                'replayed without what it knows of the images: '
                + (
                    'its class token joins behind the first block'
                    if late
                    else 'more than the feature of one stage leads to the next'
                )
            )

    def _remember_call(self, path: str, inputs, outputs) -> None:
        image = find_tensor(inputs)
        if image is None:
            return
        self._first = self._first or path
        if path == self._first:
            self._calls.clear()
            self._ended = False
            self._images = image.shape[1:]
        if not self._ended:
            call = Call(len(image), tree_map(_blank, outputs))
            self._calls[path].append(call)

    def _remember(self, inputs, outputs) -> None:
        super()._remember(inputs, outputs)
        self._ended = True
        stage = outputs
        if isinstance(outputs, tuple | list):
            stage = outputs[self.start.output]
        self._batch = len(stage)
        self._outputs = tree_map(
            lambda x: STAGE if x is stage else _detach(x), outputs
        )

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        result = self._run(tokens)
        if not self._is_tight:
            # Features may overflow by themselves, but ones will not.
            if result.isnan().any():
                with torch.no_grad():
                    self._check_tightness(self._run(torch.ones_like(tokens)))
            self._is_tight = True
        return result

    def _check_tightness(self, result: torch.Tensor) -> None:
        if result.isnan().any():
            raise RuntimeError(
                f'stage {self.to_stage} of this '
                f'{type(self.backbone).__name__} is made of more than stage '
                f'{self.from_stage}, so that what lies between them cannot be '
                'replayed; take another `from_stage`'
            )

    def _run(self, tokens: torch.Tensor) -> torch.Tensor:
        feature = self._return(tokens)
        images = tokens.new_full((len(tokens), *self._images), torch.nan)
        calls = {path: iter(made) for path, made in self._calls.items()}
        has_grad = torch.is_grad_enabled()
        started, ends = [], []

        def run(path, call, *args, **kwargs):
            if started:
                outputs = call(*args, **kwargs)
                if path == self.end.source:
                    self._check_grad(has_grad)
                    ends.append(self.end.pick(outputs))
                    raise EndReached
                return outputs
            if path == self.start.source:
                self._check_grad(has_grad)
                started.append(path)
                return feature
            if path in way:
                # Hooks on it are for the whole of it.
                module = self.backbone.get_submodule(path)
                return module.forward(*args, **kwargs)
            made = next(calls.get(path, iter(())), None)
            if made is None:
                return call(*args, **kwargs)
            return fill(made, len(find_tensor((args, kwargs))), tokens)

        way = parents(self.start.source)
        places = {*self.earlier, *way, self.start.source, self.end.source}
        with ExitStack() as stack:
            for path in places:
                module = self.backbone.get_submodule(path)
                stack.enter_context(replaced_call(module, partial(run, path)))
            try:
                self.backbone.forward(images)
            except EndReached:
                return ends[0]
        raise RuntimeError(
            f'{self.end.source} of the {type(self.backbone).__name__} did not '
            'run in its forward'
        )

    def _return(self, tokens: torch.Tensor) -> Any:
        """Make what the module that ends the stage returns."""
        feature = self.lay_out(tokens)
        if self.start.copy and feature is tokens:
            feature = feature.clone()
        return tree_map(
            lambda x: (
                feature if x is STAGE else repeat(x, self._batch, tokens)
            ),
            self._outputs,
        )

    def _check_grad(self, expected: bool) -> None:
        if torch.is_grad_enabled() != expected:
            raise RuntimeError(
                f'the {type(self.backbone).__name__} runs its blocks in '
                'reentrant activation checkpoints, through which its stages '
                'cannot be replayed with gradient; switch its checkpointing '
                'off'
            )


def parents(path: str) -> list[str]:
    """List the paths of the modules that a module lies in."""
    names = path.split('.')
    return ['.'.join(names[:i]) for i in range(1, len(names))]


def beside(net: nn.Module, path: str) -> list[str]:
    """List the modules beside the way to a module.

    Each of its parents runs other modules before and behind it. Lists of
    modules are never run themselves.
    """
    way = ['', *parents(path)]
    paths, pending = [], way
    while pending:
        parent, *pending = pending
        for name, module in net.get_submodule(parent).named_children():
            child = f'{parent}.{name}'.removeprefix('.')
            if child in (*way, path):
                continue
            if isinstance(module, nn.ModuleList | nn.ModuleDict):
                pending.append(child)
            else:
                paths.append(child)
    return paths


def find_tensor(tree: Any) -> torch.Tensor | None:
    """Find the first tensor with a batch among arguments."""
    leaves = tree_leaves(tree)
    tensors = (x for x in leaves if isinstance(x, torch.Tensor) and x.ndim)
    return next(tensors, None)


def _blank(value: Any) -> Any:
    value = _detach(value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return Blank(value.shape) if value.ndim else value


def _detach(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def fill(call: Call, batch: int, like: torch.Tensor) -> Any:
    """Return NaN as a call did, for the batch that it is made with now."""

    def make(value):
        if not isinstance(value, Blank):
            return value
        length, *sizes = value.shape
        length = length * batch // call.batch
        return like.new_full((length, *sizes), torch.nan)

    return tree_map(make, call.outputs)


@contextmanager
def replaced_call(module: nn.Module, function: Callable) -> Iterator[None]:
    """Let a module run a function of its own call and inputs for a while.

    Hooks are a part of the call. Setting this attribute is what
    ``nn.Module.compile`` does to replace it.
    """
    compiled = module._compiled_call_impl
    module._compiled_call_impl = partial(
        function, compiled or module._call_impl
    )
    try:
        yield
    finally:
        del module._compiled_call_impl
        if compiled:
            module._compiled_call_impl = compiled
