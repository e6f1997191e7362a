"""Which weights a checkpoint holds, whoever wrote it.

Training codes wrap weights in entries (``state_dict``, ``model``,
``model_ema``) and in prefixes (DDP's ``module.``), and a distillation saves
its student beside its connectors. The functions here take dictionaries to
dictionaries; nothing is read from a disk.
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from mmengine.logging import print_log

#: What the weights of a student are called in those of a distillation.
STUDENT = 'architecture.'
#: What those of its connectors and losses are called.
DISTILLER = 'distiller.'
#: What those of a backbone are called in those of a model.
BACKBONE = 'backbone.'

#: Entries of a checkpoint that hold the weights as they were trained.
_TRAINED = ('state_dict', 'model', 'model_state_dict', 'module')
#: Entries of timm and of official codes with their moving average.
_AVERAGED = ('state_dict_ema', 'model_ema')
#: What DDP, an average of weights and ``torch.compile`` put before names.
_WRAPPERS = ('module.', '_orig_mod.')
#: What an average of weights counts its updates in.
_COUNTERS = ('steps', 'n_averaged')

Weights = OrderedDict[str, torch.Tensor]


def has_average(checkpoint: Mapping) -> bool:
    """Whether a checkpoint has trained weights and their moving average.

    MMEngine writes the average as ``state_dict`` and the trained weights as
    ``ema_state_dict``; others write the average as ``state_dict_ema`` or
    ``model_ema``, beside the trained ones.
    """
    return any(
        _is_nested(checkpoint, key) for key in ('ema_state_dict', *_AVERAGED)
    )


def pick_weights(checkpoint: Mapping, ema: bool | None = None) -> Weights:
    """Find the weights in a checkpoint, under the names of the model.

    Args:
        checkpoint (Mapping): A checkpoint of MMEngine, timm or another code,
            or a plain state dict.
        ema (bool, optional): Whether to take averaged weights; None takes
            them where there are any, and says so in the log. Defaults to
            None.

    Returns:
        OrderedDict[str, Tensor]: Without the prefixes of wrappers.

    Examples:
        >>> import torch
        >>> from mmcakd.models.teachers.state_dicts import pick_weights
        >>> one, two = torch.ones(1), torch.full((1,), 2.0)
        >>> checkpoint = dict(state_dict={'module.fc.bias': one},
        ...                   state_dict_ema={'module.fc.bias': two})
        >>> dict(pick_weights(checkpoint))
        {'fc.bias': tensor([2.])}
        >>> dict(pick_weights(checkpoint, ema=False))
        {'fc.bias': tensor([1.])}
    """
    averaged = [key for key in _AVERAGED if _is_nested(checkpoint, key)]
    trained = [
        key
        for key in _TRAINED
        if _is_nested(checkpoint, key)
        # A reader may have put the average there, too.
        and not any(checkpoint[key] is checkpoint[name] for name in averaged)
    ]
    if _is_nested(checkpoint, 'ema_state_dict'):
        # MMEngine saves what it validated as `state_dict`.
        averaged, trained = trained, ['ema_state_dict']
    wanted = trained + averaged if ema is False else averaged + trained
    if not wanted:
        return _unwrap(_tensors(checkpoint))
    if averaged and trained:
        kind = 'as they were trained' if ema is False else 'averaged ones'
        print_log(
            f'The checkpoint holds weights as {trained[0]} and as '
            f'{averaged[0]}, their moving average or what it is made of: '
            f'taken are the {kind}, {wanted[0]}',
            'current',
        )
    # An entry may be a checkpoint itself.
    return pick_weights(checkpoint[wanted[0]], ema)


def prefer_average(checkpoint: dict) -> dict:
    """Put averaged weights where MMEngine looks for weights.

    Args:
        checkpoint (dict): A checkpoint of any code. One of MMEngine passes:
            its ``state_dict`` is the average.

    Returns:
        dict: With the average in ``state_dict``, if there is one.
    """
    if any(_is_nested(checkpoint, key) for key in _AVERAGED):
        return {**checkpoint, 'state_dict': pick_weights(checkpoint)}
    return checkpoint


def pick_student(weights: Weights) -> Weights:
    """Take the student out of the weights of a distillation.

    Args:
        weights (OrderedDict): Of a distillation, or of a plain model, which
            pass.

    Returns:
        OrderedDict: The weights, named as in the student itself.
    """
    if any(key.startswith(STUDENT) for key in weights):
        return take_inside(weights, STUDENT)
    return weights


def _is_nested(checkpoint: Mapping, key: str) -> bool:
    return isinstance(checkpoint.get(key), Mapping)


def _tensors(state_dict: Mapping) -> Weights:
    weights = OrderedDict(
        (key, value)
        for key, value in state_dict.items()
        if isinstance(value, torch.Tensor)
    )
    # Versions of the modules, by which they rename keys of older releases.
    weights._metadata = getattr(state_dict, '_metadata', OrderedDict())
    return weights


def _unwrap(weights: Weights) -> Weights:
    for prefix in _WRAPPERS:
        names = [key for key in weights if key not in _COUNTERS]
        if names and all(key.startswith(prefix) for key in names):
            return _unwrap(take_inside(weights, prefix))
    return weights


def take_inside(weights: Weights, prefix: str) -> Weights:
    """Take the weights below a prefix, without it in their names."""
    prefix = prefix.removesuffix('.') + '.'
    inside = OrderedDict(
        (key.removeprefix(prefix), value)
        for key, value in weights.items()
        if key.startswith(prefix)
    )
    inside._metadata = OrderedDict(
        (key.removeprefix(prefix), value)
        for key, value in getattr(weights, '_metadata', {}).items()
        if key.startswith(prefix)
    )
    return inside


def take_backbone(weights: Weights) -> Weights:
    """Take the backbone out of weights, for a model without a head.

    Args:
        weights (OrderedDict): Of a model with a backbone, or of a backbone
            alone.

    Returns:
        OrderedDict: The weights below ``backbone.``.
    """
    names_it = any(key.startswith(BACKBONE) for key in weights)
    taken = OrderedDict(
        (key if names_it else BACKBONE + key, value)
        for key, value in weights.items()
        if not names_it or key.startswith(BACKBONE)
    )
    # Versions of the modules, by their names.
    taken._metadata = OrderedDict(
        (key if names_it else (BACKBONE + key).removesuffix('.'), value)
        for key, value in getattr(weights, '_metadata', {}).items()
    )
    return taken
