"""Settings of every test: strict ranks, and flags as an entry point would leave them."""

import jax
import pytest
from absl import flags
from hypothesis import settings


def pytest_configure(config: pytest.Config) -> None:
    # Grain reads absl flags in its worker processes, which refuses to work with unparsed ones.
    flags.FLAGS.mark_as_parsed()
    # The first example of a test compiles, which no deadline should count.
    settings.register_profile("yogo", deadline=None, derandomize=True)
    settings.load_profile("yogo")
    jax.config.update("jax_numpy_rank_promotion", "raise")
