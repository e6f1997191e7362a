"""Version of mmcakd."""

__version__ = '0.1.0'
