"""What the RDMA tests share. Those marked `rdma` need a device, `rdma_joined` two machines: tests/guest runs them."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The tests and the programs that they start share `ends`, which is no part of the package.
sys.path.insert(0, str(Path(__file__).parent))

MARKERS = {
    "rdma": "needs an RDMA device, and runs only when -m names it",
    "rdma_joined": "needs two joined machines, and runs only when -m names it",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = set(re.findall(r"\w+", config.option.markexpr))
    unasked = [item for item in items if any(item.get_closest_marker(name) for name in set(MARKERS) - asked)]
    if unasked:
        config.hook.pytest_deselected(items=unasked)
        items[:] = [item for item in items if item not in unasked]


@pytest.fixture(scope="session")
def device() -> str:
    """The device that the tests use; that there is none is a failure."""
    from cktrain.comm.transport.rdma_device import describe_system, usable_devices

    names = usable_devices(describe_system(), one_host=True)
    assert names, "no usable RDMA device: examples/soft_roce_up.sh makes one"
    return names[0]


@pytest.fixture(params=["native", "pyverbs"])
def provider(request: pytest.FixtureRequest) -> Any:
    """Each provider in turn; that one does not load is a failure."""
    from cktrain.comm.transport.verbs import load_provider

    return load_provider(request.param)


@pytest.fixture
def connected(provider: Any, device: str) -> Iterator[Callable[..., Any]]:
    """`connected(**options)` is two connected ends on one device, closed after the test."""
    from ends import loopback

    made: list[Any] = []

    def make(**options: Any) -> Any:
        pair = loopback(provider, device, **options)
        made.extend(pair)
        return pair

    yield make
    for end in made:
        end.close()


# Of two joined machines, which run the same tests in step.


@pytest.fixture(scope="session")
def role() -> str:
    """A or B."""
    return os.environ["GUEST_ROLE"]


@pytest.fixture(scope="session")
def wire() -> str:
    """The interface between the machines."""
    return os.environ["GUEST_WIRE"]


@pytest.fixture(scope="session")
def meeting(role: str) -> Iterator[Any]:
    """`meeting.exchange()` is a barrier of both."""
    from ends import ADDRESSES, Meeting

    with Meeting(role, ADDRESSES["A"]) as found:
        yield found
