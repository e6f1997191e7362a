"""torchvision's classifiers as models of MMPretrain."""

from typing import Any

from mmengine.registry import DefaultScope
from mmpretrain.models import TimmClassifier
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import nn

from mmcakd.registry import MODELS


@MODELS.register_module()
class TorchvisionClassifier(TimmClassifier):
    """An image classifier of torchvision.

    What ``mmpretrain.TimmClassifier`` is for timm: it takes torchvision's
    checkpoints as they are, and its own can be loaded by torchvision.

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
        self.loss_module = loss
        self._register_state_dict_hook(self._remove_state_dict_prefix)
        self._register_load_state_dict_pre_hook(self._add_state_dict_prefix)
