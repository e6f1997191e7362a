from .algorithms import *  # noqa: F403
from .backbones import *  # noqa: F403
from .connectors import *  # noqa: F403
from .distillers import *  # noqa: F403
from .losses import *  # noqa: F403
from .recorders import *  # noqa: F403
from .stages import *  # noqa: F403
from .teachers import *  # noqa: F403
