"""The devices and attention implementations that tests run on, and how hard Hypothesis looks.

``--device cpu`` or ``--device cuda`` keeps to one device; without it a test that takes `device`
runs on each there is. Tests that do not take it have nothing to do with devices, so a run on CUDA
alone leaves them out. ``--device elsewhere`` pretends that there is one: see `support.fake_device`.

Each test begins with the same random numbers; ``--seed`` takes others. A test must pass with any.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# Before anything imports them: an assertion there shows its values, as one in a test does.
pytest.register_assert_rewrite("tests.families", "tests.support")

settings.register_profile(
    "default",
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", settings.get_profile("default"), max_examples=150, derandomize=False
)
settings.register_profile(
    # `make fuzz`: an example that fails is printed so that it can be run again by itself.
    "fuzz",
    settings.get_profile("thorough"),
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")),
    print_blob=True,
)
settings.register_profile(
    # Where time is short: a failing example is reported as it is, not made smaller for minutes.
    "unshrunk",
    settings.get_profile("default"),
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

torch.set_num_threads(1)

if not torch.cuda.is_available():
    # Triton's kernels run on the CPU then; it reads this when it is first imported.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("cpu", "cuda", "elsewhere"), help="run on this device only"
    )
    parser.addoption("--seed", type=int, default=0, help="where torch's random numbers begin")
    parser.addoption(
        "--method-file",
        type=Path,
        action="append",
        default=[],
        help="sweep over the pruning methods that this Python file registers, and no others",
    )


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(request.config.getoption("--seed"))


@pytest.fixture
def registrations() -> Iterator[None]:
    """Take back the methods that a test registers."""
    from tokenprune.methods import METHODS

    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture(autouse=True)
def _pretended(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.config.getoption("--device") != "elsewhere":
        yield
        return
    from .support.fake_device import Pretend

    with Pretend():
        yield


@pytest.fixture(autouse=True, scope="session")
def _flex_on_cpu() -> Iterator[None]:
    from .support.flex_on_cpu import flex_on_cpu

    with flex_on_cpu():
        yield


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_device(why): not on a pretended one")
    if files := config.getoption("--method-file"):
        from .support.config_strategies import register_from

        register_from(files)
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(
            "--device cuda: torch sees no CUDA device here, so there is nothing to test. Run it "
            "where there is one, or run `make test`."
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        only = metafunc.config.getoption("--device")
        both = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        metafunc.parametrize("device", [only] if only else both)
    if "attn" in metafunc.fixturenames:
        from .support.backends import BACKENDS

        real = pytest.mark.real_device("a dispatch mode cannot pretend flex_attention")
        flex = [pytest.param(name, marks=real) for name in BACKENDS if name == "flex_attention"]
        metafunc.parametrize("attn", [*(n for n in BACKENDS if n != "flex_attention"), *flex])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--device") == "elsewhere":
        for item in items:
            real = item.get_closest_marker("real_device")
            if real:
                item.add_marker(pytest.mark.skip(reason=f"a pretended device: {real.args[0]}"))
    if config.getoption("--device") in ("cuda", "elsewhere"):
        on_device = [item for item in items if "device" in getattr(item, "fixturenames", ())]
        left_out = [item for item in items if item not in on_device]
        config.hook.pytest_deselected(items=left_out)
        items[:] = on_device
