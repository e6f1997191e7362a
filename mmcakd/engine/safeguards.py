"""Hooks without which no run should be trusted."""

from mmengine.config import Config

#: By their keys in ``default_hooks``, as in configs/_base_/default_runtime.py.
SAFEGUARDS = dict(
    seed='mmcakd.SeedByEpochHook',
    training_set='mmcakd.TrainingSetHook',
    non_finite='mmcakd.NonFiniteHook',
    stop='mmcakd.CleanStopHook',
    recipe='mmcakd.RecipeCheckHook',
)


def add_safeguards(cfg: Config) -> None:
    """Give a config the hooks that keep a run from being lost or wrong.

    Args:
        cfg (Config): Changed in place. A hook that it has already, under any
            name, or that it sets to None, is left alone.

    Examples:
        >>> from mmengine.config import Config
        >>> from mmcakd.engine.safeguards import add_safeguards
        >>> cfg = Config(dict(default_hooks=dict(stop=None)))
        >>> add_safeguards(cfg)
        >>> sorted(cfg.default_hooks)
        ['non_finite', 'recipe', 'seed', 'stop', 'training_set']
        >>> cfg.default_hooks.stop is None
        True
    """
    hooks = dict(cfg.get('default_hooks') or {})
    given = [*hooks.values(), *(cfg.get('custom_hooks') or [])]
    names = {_name(hook) for hook in given if isinstance(hook, dict)}
    for key, kind in SAFEGUARDS.items():
        if kind.split('.')[-1] not in names:
            hooks.setdefault(key, dict(type=kind))
    cfg.default_hooks = hooks


def _name(hook: dict) -> str:
    kind = hook.get('type')
    return getattr(kind, '__name__', str(kind)).split('.')[-1]
