# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

from collections.abc import Iterator
import gc
import os
from pathlib import Path
import subprocess
import sys

from hypothesis import settings
import pytest

# Compiled programs stay in a folder: for the next run, for other workers, and for the
# processes that tests start. JAX reads this when it is imported.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402

from numpyro_infograd import _compiling, values  # noqa: E402

# The same examples at every run: a failure is then one of the change at hand.
settings.register_profile("same", derandomize=True, database=None)
settings.load_profile("same")


# Another way for XLA to make loops of CPUs' code, in a third of the time.
_QUICK = "--xla_cpu_use_fusion_emitters=false"


def _quick_flags() -> str:
    """Flags for a quick compiler; XLA aborts on those that a version does not know."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}"
    probe = [sys.executable, "-c", "import jax; jax.devices()"]
    env = os.environ | {"XLA_FLAGS": flags}
    known = subprocess.run(probe, env=env, capture_output=True).returncode == 0
    return flags if known else os.environ.get("XLA_FLAGS", "")


def pytest_configure(config: pytest.Config) -> None:
    """Compiling is most of the fast tests' time, so they leave optimising out.

    And where an ascent ends with much information, its value comes from shorter chains
    or a smaller network. With the slow tests (`make test-all`) all is as users have it.
    """
    if config.option.markexpr == "not slow":
        if not hasattr(config, "workerinput"):  # workers inherit what is set here
            os.environ["XLA_FLAGS"] = _quick_flags()
        jax.config.update("jax_disable_most_optimizations", True)
        _compiling._OPTIONS["xla_backend_optimization_level"] = 0
        # Traces leave millions of objects, few of them garbage in cycles, and what is
        # imported stays: a twentieth of all time went into looking for it.
        gc.freeze()
        gc.set_threshold(50_000, 10, 50)
        values.choice._CHAINS = values.MCMC(2**14, 128, 2**18)
        values.choice._LEARNED = values.DeBruijn(2**15, (32, 32), 2, 100)


# Doctests of default size, which compile much.
_SLOW_DOCTESTS = tuple(
    """calibrate.calibrate check_scores design.design gradients.plot_ascent
    optimize.maximize optimize.minimize optimize.result.Result planes.plot_rate_region
    pretraining.pretrain_scores regions.rate_region values.null_check""".split()
)


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave the largest doctests to the slow tests."""
    if config.option.markexpr != "not slow":
        return
    large = [x for x in items if isinstance(x, pytest.DoctestItem)]
    large = [x for x in large if x.name.endswith(_SLOW_DOCTESTS)]
    items[:] = [x for x in items if x not in large]
    config.hook.pytest_deselected(items=large)


@pytest.fixture
def x64() -> Iterator[None]:
    """Run one test in double precision, and restore the setting after it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Modules share few compiled programs, and all of them take gigabytes.

    Doctests are small, and much the same.
    """
    yield
    if request.node.path.parent == Path(__file__).parent:
        jax.clear_caches()
        gc.collect()
