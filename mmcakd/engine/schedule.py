"""Another number of epochs than a config was written for, and too few."""

from collections.abc import Iterator

from mmengine.config import Config
from mmengine.optim.scheduler.param_scheduler import INF

#: What a scheduler says in epochs or steps, besides its begin and end.
_LENGTHS = ('T_max', 'step_size', 'total_steps')
_LISTS = ('milestones', 'periods')
#: What hooks say in epochs.
_HOOK_EPOCHS = ('stop_epoch', 'switch_epoch', 'num_last_epochs')


def rescale_epochs(cfg: Config, epochs: int) -> None:
    """Train for another number of epochs, on the same schedule.

    All lengths are multiplied by the same factor, so that the learning rate
    takes the same course in more or in fewer steps:

    - of ``param_scheduler``: ``begin``, ``end``, ``T_max``, ``milestones``,
      ``periods``, ``step_size`` and ``total_steps``, in epochs or in steps.
      A phase of which not half an epoch would be left, such as a warm-up, is
      dropped;
    - of ``train_cfg``: ``max_epochs``, ``val_begin`` and the beginnings of
      ``dynamic_intervals``. ``val_interval``, and the interval of the
      ``CheckpointHook``, become shorter where they are longer than training;
    - of hooks: ``points`` of ``LossWeightScheduleHook``, ``stop_epoch`` of
      ``StopDistillHook``, ``action_epoch`` of ``SwitchRecipeHook``,
      ``begin_epoch`` of ``EMAHook``, and ``switch_epoch`` and
      ``num_last_epochs`` of MMDetection's.

    What counts steps outside of these, such as ``anneal_iters`` of a
    :class:`mmcakd.models.losses.RouterLoss`, is left as it is.

    Args:
        cfg (Config): Of a run that counts epochs; changed in place.
        epochs (int): How many epochs to train for.

    Raises:
        ValueError: Not a positive number, or a run that counts steps.

    Examples:
        >>> from mmengine.config import Config
        >>> from mmcakd.engine import rescale_epochs
        >>> cfg = Config(dict(
        ...     train_cfg=dict(by_epoch=True, max_epochs=300),
        ...     param_scheduler=[
        ...         dict(type='LinearLR', end=20),
        ...         dict(type='CosineAnnealingLR', begin=20)]))
        >>> rescale_epochs(cfg, 30)
        >>> cfg.train_cfg.max_epochs, cfg.param_scheduler[1].begin
        (30, 2)
    """
    if epochs < 1:
        raise ValueError(f'epochs must be positive, got {epochs}')
    train_cfg = cfg.get('train_cfg') or {}
    if 'max_epochs' not in train_cfg:
        raise ValueError(
            'the schedule cannot be rescaled to a number of epochs: its '
            'train_cfg counts steps; set train_cfg.max_iters and the lengths '
            'of param_scheduler instead'
        )
    before = train_cfg.max_epochs
    scale = epochs / before

    train_cfg.max_epochs = epochs
    if 'val_interval' in train_cfg:
        train_cfg.val_interval = min(train_cfg.val_interval, epochs)
    if 'val_begin' in train_cfg:
        train_cfg.val_begin = _rescale(train_cfg.val_begin, scale)
    if train_cfg.get('dynamic_intervals'):
        train_cfg.dynamic_intervals = [
            (_rescale(begin, scale), interval)
            for begin, interval in train_cfg.dynamic_intervals
        ]
    if cfg.get('param_scheduler'):
        cfg.param_scheduler = _rescale_schedulers(
            cfg.param_scheduler, before, epochs
        )
    hooks = (cfg.get('default_hooks') or {}).values()
    for hook in (*hooks, *(cfg.get('custom_hooks') or ())):
        if isinstance(hook, dict):
            _rescale_hook(hook, scale, epochs)


def check_schedule(cfg: Config) -> None:
    """Check that training is longer than its warm-up.

    Args:
        cfg (Config): Of a run. What it says in steps is checked if training
            is counted in steps, too.

    Raises:
        ValueError: A warm-up that lasts longer than training, or a scheduler
            that begins when training has ended.

    Examples:
        >>> from mmengine.config import Config
        >>> from mmcakd.engine import check_schedule
        >>> check_schedule(Config(dict(
        ...     train_cfg=dict(by_epoch=True, max_epochs=5),
        ...     param_scheduler=dict(type='LinearLR', end=20))))
        Traceback (most recent call last):
            ...
        ValueError: LinearLR warms up until epoch 20, but training ends ...
    """
    train_cfg = cfg.get('train_cfg') or {}
    ends = dict(epoch=train_cfg.get('max_epochs'))
    if 'max_epochs' not in train_cfg:
        ends['step'] = train_cfg.get('max_iters')
    for scheduler in _schedulers(cfg.get('param_scheduler') or []):
        unit = 'epoch' if scheduler.get('by_epoch', True) else 'step'
        last = ends.get(unit)
        if isinstance(scheduler, dict) and last is not None:
            check_scheduler(
                _name(scheduler['type']),
                is_warmup(scheduler),
                scheduler.get('begin', 0),
                scheduler.get('end', last),
                last,
                unit,
            )


def check_scheduler(
    name: str, warms_up: bool, begin: int, end: int, last: int, unit: str
) -> None:
    """Check one scheduler.

    Args:
        name (str): Its type, for the message.
        warms_up (bool): Whether the learning rate rises in it.
        begin (int): Where it begins.
        end (int): Where it ends.
        last (int): Where training ends.
        unit (str): What they count: 'epoch' or 'step'.

    Raises:
        ValueError: See :func:`check_schedule`.
    """
    if warms_up and end > last:
        problem = f'{name} warms up until {unit} {end}'
    elif begin >= last:
        problem = f'{name} begins at {unit} {begin}'
    else:
        return
    raise ValueError(
        f'{problem}, but training ends at {unit} {last}: shorten '
        'param_scheduler with the training, as tools/train.py --epochs does '
        '(mmcakd.engine.rescale_epochs), or train for longer'
    )


def is_warmup(scheduler: dict) -> bool:
    """Whether the values of a scheduler's config rise to the optimizer's."""
    name = _name(scheduler['type'])
    # Of the learning rate, the momentum or another parameter.
    if name.startswith('Linear'):
        start = scheduler.get('start_factor', 1 / 3)
        return start < scheduler.get('end_factor', 1)
    return name.startswith('Constant') and scheduler.get('factor', 1 / 3) < 1


def _name(type_: str | type) -> str:
    return getattr(type_, '__name__', str(type_)).rpartition('.')[2]


def _schedulers(cfg: dict | list) -> Iterator[dict]:
    """All schedulers of one optimizer, or of several by name."""
    if isinstance(cfg, dict) and 'type' not in cfg:
        for schedulers in cfg.values():
            yield from _schedulers(schedulers)
    else:
        yield from [cfg] if isinstance(cfg, dict) else cfg


def _rescale_schedulers(cfg: dict | list, before: int, epochs: int):
    if isinstance(cfg, dict) and 'type' not in cfg:
        return {
            name: _rescale_schedulers(schedulers, before, epochs)
            for name, schedulers in cfg.items()
        }
    kept = []
    for scheduler in _schedulers(cfg):
        is_whole = scheduler.get('T_max') == _span(scheduler, before)
        _rescale_scheduler(scheduler, epochs / before)
        span = _span(scheduler, epochs)
        if is_whole:
            # To the end, however both ends were rounded.
            scheduler.T_max = span
        if span > 0:
            kept.append(scheduler)
    return kept


def _span(scheduler: dict, epochs: int) -> int:
    # In steps, the end of training is not known.
    end = epochs if scheduler.get('by_epoch', True) else INF
    return scheduler.get('end', end) - scheduler.get('begin', 0)


def _rescale_scheduler(scheduler: dict, scale: float) -> None:
    for key in ('begin', 'end'):
        if scheduler.get(key, INF) < INF:
            scheduler[key] = round(scheduler[key] * scale)
    for key in _LENGTHS:
        if scheduler.get(key) is not None:
            scheduler[key] = _rescale(scheduler[key], scale)
    for key in _LISTS:
        if key in scheduler:
            scheduler[key] = [_rescale(n, scale) for n in scheduler[key]]


def _rescale_hook(hook: dict, scale: float, epochs: int) -> None:
    name = _name(hook.get('type', ''))
    for key in _HOOK_EPOCHS:
        if hook.get(key) is not None:
            hook[key] = _rescale(hook[key], scale)
    if hook.get('begin_epoch'):
        hook.begin_epoch = round(hook.begin_epoch * scale)
    if name == 'LossWeightScheduleHook':
        hook.points = [
            (epoch * scale, factor) for epoch, factor in hook.points
        ]
    elif name == 'SwitchRecipeHook':
        for action in hook.schedule:
            action.action_epoch = _rescale(action.action_epoch, scale)
    elif name.endswith('CheckpointHook') and hook.get('by_epoch', True):
        hook.interval = min(hook.get('interval', -1), epochs)


def _rescale(count: int, scale: float) -> int:
    """A number of epochs or steps, at least one."""
    return max(round(count * scale), 1)
