"""What holds for every test: one thread, checked shapes, repeatable examples."""

import os
import signal

# Before torch is imported anywhere: the bits of a sum depend on the number of threads.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
# XLA has a pool of its own; and what it compiles here runs once, so it need not become fast.
os.environ["NPROC"] = "1"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import hypothesis
import pytest
from jaxtyping import install_import_hook

import bare
from budget import Budget

# Shapes and argument types of the package are checked in this process only: an arm's own process
# runs the package as users do. The checks cost more than most tests, so `./qkv test` runs the files
# that are not about arrays without them.
if os.environ.get("QKVBENCH_CHECK_SHAPES", "1") != "0":
    install_import_hook("qkvbench", "typecheck.checked")

# The same examples every time; a slow machine is no failure.
hypothesis.settings.register_profile("here", derandomize=True, deadline=None)
hypothesis.settings.load_profile("here")


def pytest_configure(config):
    config.pluginmanager.register(Budget())
    # Eleven thousand cases that no one asked for would take half a minute to collect.
    asked = config.option.markexpr
    quick = "not slow" in asked
    os.environ["QKVBENCH_CASES"] = (
        "quick" if quick else "slow" if "not nightly" in asked else "nightly"
    )
    if quick:
        # So that no quick test needs them, on a machine that has them as well.
        bare.hide(bare.absent())


@pytest.fixture
def foreground():
    """Ctrl-C interrupts, as in a terminal; a job in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The program without Python, for this machine."""
    from qkvbench.native.build import BuildError
    from qkvbench.native.program import build_program

    path = tmp_path_factory.mktemp("program") / "qkvbench-edge"
    try:
        build_program(path)
    except BuildError as error:
        pytest.skip(f"the program cannot be built: {error}")
    return path
