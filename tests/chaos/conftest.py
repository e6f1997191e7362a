"""How many examples are tried: --hypothesis-profile long tries 1,000."""

from hypothesis import HealthCheck, settings

COMMON = dict(
    deadline=None,
    database=None,  # nothing is written beside the tests
    suppress_health_check=list(HealthCheck),
)
settings.register_profile('short', max_examples=60, derandomize=True, **COMMON)
settings.register_profile('long', max_examples=1000, **COMMON)
settings.load_profile('short')
