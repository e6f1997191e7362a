"""The last stage and the head of a classifier, for other features."""

import copy
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder
from torch import nn

from ..recorders import LogitsRecorder
from ..stages import (
    build_tail,
    find_backbone,
    find_family,
    find_taps,
    frozen_statistics,
    to_map,
)

CURE = (
    'Let the other model come last (`first` of the assistant), or take a '
    'classifier of MMPretrain, timm or torchvision'
)


class Receiver:
    """What a classifier makes of features that enter its last stage.

    Its modules are the classifier's own. They are entered behind the patch
    merging in front of the stage's blocks, where that is a module of its own;
    class and register tokens are those that enter the first block, which know
    nothing of the images.

    Args:
        model (nn.Module): A classifier of MMPretrain, or one of timm or
            torchvision in a ``TimmClassifier`` or
            ``mmcakd.TorchvisionClassifier``.
        blocks (Sequence[int], optional): The last block of each stage of an
            isotropic network.

    Raises:
        ValueError: The last stage cannot be replayed, or the model is no
            such classifier.
    """

    def __init__(self, model: nn.Module, blocks=None) -> None:
        self.model = model
        last = len(find_taps(model, blocks))
        self.tail = build_tail(
            model,
            from_stage=last - 1,
            to_stage=last,
            blocks=blocks,
            skip_transition=True,
            fresh_extra_tokens=True,
        )
        package, _, _ = find_family(self.tail.backbone)[0].rpartition('.')
        self._has_head = getattr(model, 'head', None) is not None
        if not self._has_head and package not in ('timm', 'torchvision'):
            raise ValueError(
                f'how a {type(model).__name__} reads out its last stage is '
                f'not known. {CURE}'
            )
        # What the model itself does, to compare with.
        prefix, _ = find_backbone(model)
        self._own = [
            ModuleOutputsRecorder(prefix + self.tail.end.source),
            LogitsRecorder(),
        ]
        self._watching = ExitStack()
        for recorder in self._own:
            recorder.initialize(model)
            self._watching.enter_context(recorder)

    def __deepcopy__(self, memo: dict) -> 'Receiver':
        """Belong to the copy of the model, or stay if that is shared."""
        model = memo.get(id(self.model))
        if model is None:
            return self
        clone = copy.copy(self)
        clone.model = model
        clone.tail = copy.deepcopy(self.tail, memo)
        return clone

    @property
    def grid(self) -> tuple[int, int]:
        """``(H, W)`` of the tokens it takes, in the model's last forward."""
        return self.tail.grid

    @property
    def width(self) -> int:
        """Channels of these tokens."""
        return self.tail.width

    @property
    def num_heads(self) -> int:
        """Heads of the last attention; without any, of about 32 channels."""
        heads = [
            module.num_heads
            for module in self.tail.backbone.modules()
            if isinstance(getattr(module, 'num_heads', None), int)
        ]
        if heads:
            return heads[-1]
        most = max(self.width // 32, 1)
        return next(n for n in range(most, 0, -1) if self.width % n == 0)

    def check(self) -> None:
        """Compare with the model's first forward since it was built.

        Raises:
            ValueError: The model does more behind its last stage than is
                known of it.
        """
        self._watching.close()
        # A teacher may run in half precision, but its weights do not.
        dtype = next(self.model.parameters()).dtype
        modes = [(part, part.training) for part in self.model.modules()]
        self.model.eval()
        cause = None
        try:
            stage, logits = (each.get_record_data() for each in self._own)
            same = self._classify(self.tail.end.pick(stage).to(dtype))
            error = (same - logits).abs().max() / logits.abs().max()
        except Exception as failure:
            error, cause = torch.inf, failure
        finally:
            for recorder in self._own:
                recorder.reset_data_buffer()
            for part, mode in modes:
                part.training = mode
        # A head that starts at zero tells nothing, and 0 / 0 is no error.
        if error > 0.05:
            raise ValueError(
                f'the {type(self.model).__name__} of a '
                f'{type(self.tail.backbone).__name__} does more between its '
                f'last stage and its class scores than is known of it. {CURE}'
            ) from cause

    def __call__(
        self, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run tokens of another model.

        BatchNorm of a model in training learns nothing from them.

        Args:
            tokens (Tensor): ``(N, H * W, width)``, row by row.

        Returns:
            tuple[Tensor, Tensor]: The last stage averaged over its positions,
            ``(N, C)``, and logits ``(N, K)``.
        """
        with frozen_statistics(self.model):
            stage = self.tail.replay(tokens)
            return self.tail.view(stage).mean(1), self._classify(stage)

    def _classify(self, stage: torch.Tensor) -> torch.Tensor:
        """From the last stage, in the network's layout, to class scores."""
        model, backbone, end = self.model, self.tail.backbone, self.tail.end
        if not self._has_head:
            if hasattr(backbone, 'forward_head'):
                return backbone.forward_head(stage)
            return _classify_as_torchvision(backbone, stage, end.layout)
        if hasattr(backbone, '_format_output'):
            # A plain ViT: the class token, or the mean of the others.
            out = backbone._format_output(stage, self.tail.end_grid)
        else:
            grid = self.tail.end_grid
            out = to_map(stage, end.layout, grid, end.extra_tokens)
        if getattr(backbone, 'gap_before_final_norm', False):
            # In each family it is a norm over the channels.
            norm = backbone.norm3
            out = F.layer_norm(
                out.mean((2, 3)),
                norm.normalized_shape,
                norm.weight,
                norm.bias,
                norm.eps,
            )
        neck = getattr(model, 'neck', None)
        if neck is None:
            return model.head((out,))
        if isinstance(getattr(neck, 'gap', None), nn.AdaptiveAvgPool1d):
            # MLP-Mixers hand on tokens without a grid.
            out = out.flatten(2)
        return model.head(neck((out,)))


def _classify_as_torchvision(
    net: nn.Module, stage: torch.Tensor, layout: str
) -> torch.Tensor:
    if layout == 'NLC':
        return net.heads(stage[:, 0])
    names = ('fc', 'head', 'classifier')
    head = next(getattr(net, name) for name in names if hasattr(net, name))
    pooled = to_map(stage, layout).mean((2, 3), keepdim=True)
    # A ConvNeXt's begins with a norm over maps.
    flattens = any(isinstance(part, nn.Flatten) for part in head.modules())
    return head(pooled if flattens else pooled.flatten(1))
