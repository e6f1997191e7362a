"""Backbones without a classifier, as models that can be trained and read."""

from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel, BaseModule
from mmengine.structures import BaseDataElement
from mmpretrain.models import ImageClassifier, TimmClassifier
from mmpretrain.structures import DataSample
from torch import nn

from mmcakd.registry import MODELS

#: What stands for a bare backbone: its weights are ``backbone.*`` there, as
#: in the checkpoints that detectors start from.
WRAPPER = 'mmpretrain.ImageClassifier'
#: What backbones of OpenMMLab are. Networks of other packages may have a
#: head, and are told by their wrappers.
BACKBONES = (BaseModule,)


def wrap_backbone(cfg: dict, scope: str | None = None) -> dict:
    """Make the config of a model from that of a bare backbone.

    Args:
        cfg (dict): Of a backbone such as ``dict(type='mmpretrain.ResNet',
            depth=18)``; of a model, which passes.
        scope (str, optional): The package in which a plain type is looked
            for. Defaults to the default scope.

    Returns:
        dict: Of an ``ImageClassifier`` without neck and head.

    Examples:
        >>> from mmcakd.models.headless import wrap_backbone
        >>> wrap_backbone(dict(type='mmpretrain.ResNet', depth=18))['type']
        'mmpretrain.ImageClassifier'
    """
    kind = cfg.get('type')
    if isinstance(kind, str):
        own = cfg.get('_scope_', scope)
        with MODELS.switch_scope_and_registry(own) as registry:
            kind = registry.get(kind)
    if not (isinstance(kind, type) and issubclass(kind, BACKBONES)):
        return cfg
    if issubclass(kind, BaseModel):
        return cfg
    backbone = ConfigDict(cfg)
    model = dict(type=WRAPPER, backbone=backbone)
    preprocessor = backbone.pop('data_preprocessor', None)
    if preprocessor is not None:
        model['data_preprocessor'] = preprocessor
    return ConfigDict(model)


def has_head(model: nn.Module) -> bool:
    """Whether a model has losses and predictions of its own."""
    if isinstance(model, ImageClassifier):
        return model.head is not None
    if isinstance(model, TimmClassifier):
        return getattr(model.model, 'num_classes', 1) > 0
    return True


def is_bare_backbone(model: nn.Module) -> bool:
    """Whether a model has no weights but those of its backbone."""
    return (
        isinstance(model, ImageClassifier)
        and model.head is None
        and not any(True for _ in (model.neck or nn.Identity()).parameters())
    )


def pool_features(features: Any) -> torch.Tensor:
    """Pool what a backbone returns to a vector an image, ``(N, C)``.

    Args:
        features (Tensor | Sequence[Tensor]): Of several stages, the last one
            is taken; maps ``(N, C, H, W)`` and tokens ``(N, L, C)`` are
            averaged.
    """
    if isinstance(features, list | tuple):
        return pool_features(features[-1])
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


def predict_features(
    model: BaseModel, inputs: torch.Tensor, data_samples: list | None
) -> list[BaseDataElement]:
    """Predict with a model without a head.

    Args:
        model (BaseModel): The model.
        inputs (Tensor): ``(N, C, H, W)``.
        data_samples (list, optional): The samples of the batch.

    Returns:
        list[BaseDataElement]: The samples, each with its ``feature``, the
        pooled output of the model, ``(C,)``.
    """
    features = pool_features(model(inputs, mode='tensor'))
    if data_samples is None:
        data_samples = [DataSample() for _ in features]
    for sample, feature in zip(data_samples, features, strict=True):
        sample.set_field(feature, 'feature')
    return data_samples
