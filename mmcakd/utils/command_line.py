"""One sentence for a user whose command fails before it does its work."""

import os
import sys
import traceback
from pathlib import Path

import mmengine.registry
from mmengine.hooks import Hook
from mmengine.runner import Runner

#: Set to 1, it shows where an error comes from.
TRACEBACK = 'MMCAKD_TRACEBACK'


class Command:
    """Tells an error of a command line in one sentence, and exits with 1.

    What goes wrong while a run is set up is a matter of its config, its files
    or the machine, and the message of the error says which. MMEngine wraps it
    once for each model around the part that failed; the innermost is told.
    With the variable ``MMCAKD_TRACEBACK=1`` in the environment, all of it is
    shown.

    A command that trains calls :meth:`trains` with its Runner: an error after
    the first step is shown whole, unless a loss is not finite::

        with Command() as command:
            runner = Runner.from_cfg(cfg)
            command.trains(runner)
            runner.train()

    Examples:
        >>> from mmcakd.utils import Command
        >>> with Command():  # on stderr: error: there is no such file
        ...     raise FileNotFoundError('there is no such file')
        Traceback (most recent call last):
            ...
        SystemExit: 1
    """

    def __init__(self) -> None:
        self.has_begun = False

    def trains(self, runner: Runner) -> None:
        """Show errors whole after the first training step of a Runner."""
        runner.register_hook(_BegunHook(self))

    def __enter__(self) -> 'Command':
        return self

    def __exit__(self, kind, error, trace) -> None:
        if not isinstance(error, Exception):
            return
        # A loss that is not finite says all there is to say.
        if self.has_begun and not isinstance(error, FloatingPointError):
            return
        if os.environ.get(TRACEBACK, '0') not in ('', '0'):
            return
        # As torchrun numbers them: an error may be of one process alone.
        rank = os.environ.get('RANK', '0')
        where = '' if rank == '0' else f' on process {rank}'
        print(
            f'error{where}: {describe_error(error)}\n'
            f'({TRACEBACK}=1 in the environment shows where it comes from)',
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(1) from None


class _BegunHook(Hook):
    """Notes that a training has begun."""

    def __init__(self, command: Command) -> None:
        self.command = command

    def after_train_iter(self, *args, **kwargs) -> None:
        self.command.has_begun = True


def describe_error(error: BaseException) -> str:
    """Tell what an error says, without what MMEngine wraps around it.

    Args:
        error (BaseException): The error.

    Returns:
        str: Its message, with its type if it would not be understood.
    """
    error = _unwrapped(error)
    message = str(error).strip()
    if isinstance(error, KeyError) and error.args:
        message = str(error.args[0])
    # A word or nothing tells too little: `KeyError: 'model'`.
    if ' ' in message:
        return message
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = ''.join(f' in {f.filename}, line {f.lineno}' for f in frame)
    return f'{type(error).__name__}: {message or "no message"}{place}'


def _unwrapped(error: BaseException) -> BaseException:
    """What a part of a model raised, within what MMEngine's registry does."""
    registry = Path(mmengine.registry.__file__).parent
    while error.__context__ is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if not frames or Path(frames[-1].filename).parent != registry:
            break
        error = error.__context__
    return error
