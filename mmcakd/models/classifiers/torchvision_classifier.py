"""torchvision's classifiers as models of MMPretrain."""

from typing import Any

import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import TimmClassifier
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch import nn

from mmcakd.registry import MODELS

#: How much the losses of auxiliary classifiers count, by the class of the
#: network: `Going Deeper with Convolutions
#: <https://arxiv.org/abs/1409.4842>`_, section 5, and the training code of
#: Inception V3 in TensorFlow's Slim.
AUXILIARY_WEIGHTS = dict(GoogLeNet=0.3, Inception3=0.4)


@MODELS.register_module()
class TorchvisionClassifier(TimmClassifier):
    """An image classifier of torchvision.

    What ``mmpretrain.TimmClassifier`` is for timm: it takes torchvision's
    checkpoints as they are, and its own can be loaded by torchvision.

    GoogLeNet and Inception V3 have auxiliary classifiers, which are trained
    by ``loss_aux`` with the weights of their authors and are no part of an
    evaluation. ``aux_logits=False`` builds them without.

    Args:
        model_name (str): A name that ``torchvision.models.get_model`` knows.
        loss (dict | nn.Module): The classification loss. Defaults to
            cross-entropy.
        train_cfg (dict, optional): ``dict(augments=...)`` as of
            ``mmpretrain.ImageClassifier``.
        data_preprocessor (dict, optional): The data preprocessor, of type
            ``ClsDataPreprocessor`` if it names none.
        init_cfg (dict, optional): Initialization config.
        **kwargs: Other arguments of the model, e.g. ``num_classes``.

    Raises:
        ValueError: torchvision has no such model, or ``weights`` are asked
            for, which would load unchecked.

    Examples:
        >>> import torch
        >>> from mmcakd.models.classifiers import TorchvisionClassifier
        >>> model = TorchvisionClassifier('resnet18', num_classes=10)
        >>> model(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        model_name: str,
        loss: dict | nn.Module | None = None,
        train_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        from torchvision.models import get_model, list_models

        if model_name not in list_models():
            raise ValueError(
                f'torchvision has no model {model_name!r}; '
                'torchvision.models.list_models() lists them'
            )
        if kwargs.get('weights') is not None:
            raise ValueError(
                'weights= loads weights unchecked; name the file or URL in '
                '`teacher_ckpt` (or `init_cfg` of a student)'
            )
        preprocessor = dict(data_preprocessor or {})
        preprocessor.setdefault('type', 'mmpretrain.ClsDataPreprocessor')
        if train_cfg and 'augments' in train_cfg:
            preprocessor['batch_augments'] = train_cfg
        # Plain names inside are MMPretrain's, whatever scope builds this.
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            # The parent's own initialisation would build a model of timm.
            super(TimmClassifier, self).__init__(
                init_cfg=init_cfg, data_preprocessor=preprocessor
            )
            if not isinstance(loss, nn.Module):
                loss = MMPRETRAIN_MODELS.build(
                    loss or dict(type='CrossEntropyLoss')
                )
        self.model = get_model(model_name, weights=None, **kwargs)
        # By which torchvision knows how its weights want their images.
        self.model_name = model_name
        self.loss_module = loss
        self._register_state_dict_hook(self._remove_state_dict_prefix)
        self._register_load_state_dict_pre_hook(self._add_state_dict_prefix)

    def forward(
        self,
        inputs: torch.Tensor,
        data_samples: list[DataSample] | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """See the parent; the tensor is that of the class scores."""
        outputs = super().forward(inputs, data_samples, mode)
        # In training, networks with auxiliary classifiers return theirs, too.
        return getattr(outputs, 'logits', outputs)

    def loss(
        self,
        inputs: torch.Tensor,
        data_samples: list[DataSample],
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Compute the classification loss, and that of auxiliary classifiers.

        Args:
            inputs (Tensor): ``(N, 3, H, W)``.
            data_samples (list[DataSample]): Their labels.
            **kwargs: Other arguments of the loss module.

        Returns:
            dict[str, Tensor]: ``loss`` and, of a network with auxiliary
            classifiers in training, ``loss_aux``.
        """
        outputs = self.model(inputs)
        if isinstance(outputs, torch.Tensor):
            return self._get_loss(outputs, data_samples, **kwargs)
        logits, *auxiliary = outputs
        losses = self._get_loss(logits, data_samples, **kwargs)
        weight = AUXILIARY_WEIGHTS[type(self.model).__name__]
        losses['loss_aux'] = weight * sum(
            self._get_loss(scores, data_samples, **kwargs)['loss']
            for scores in auxiliary
        )
        return losses
