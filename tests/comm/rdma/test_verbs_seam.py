"""What of the seam needs no device: names, errors, and that both providers offer the same."""

import errno
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cktrain.comm.errors import CommError
from cktrain.comm.transport import verbs
from cktrain.comm.transport.verbs import (
    Completion,
    VerbsError,
    WorkRequestError,
    bytes_of,
    check,
    status_name,
)


def test_statuses_have_their_names() -> None:
    assert status_name(0) == "SUCCESS"
    assert status_name(5) == "WR_FLUSH_ERR"
    assert status_name(10) == "REM_ACCESS_ERR"
    assert status_name(12) == "RETRY_EXC_ERR"
    assert status_name(13) == "RNR_RETRY_EXC_ERR"
    assert status_name(99) == "status 99"


def test_a_good_completion_passes() -> None:
    check(Completion(1, 0, 1, 8, None, 17), "rank 1")


@pytest.mark.parametrize("status", range(1, len(verbs.STATUS_NAMES)))
def test_every_failure_is_a_sentence_with_a_remedy(status: int) -> None:
    with pytest.raises(WorkRequestError) as error:
        check(Completion(7, status, 0, 0, None, 17), "write of 8 bytes to rank 3")
    assert error.value.status == verbs.STATUS_NAMES[status]
    text = str(error.value)
    assert text.startswith(
        "[comm.rdma] write of 8 bytes to rank 3: work request 7 on queue pair 17 failed with"
    )
    assert text.endswith(".") and ". " in text


def test_a_failed_call_is_a_comm_error_with_its_reason() -> None:
    error = VerbsError("ibv_reg_mr", errno.ENOMEM, "8 bytes for rxe0")
    assert isinstance(error, CommError) and (error.call, error.code) == ("ibv_reg_mr", errno.ENOMEM)
    assert "ibv_reg_mr on 8 bytes for rxe0 failed: Cannot allocate memory (ENOMEM)" in str(error)
    assert "ulimit -l unlimited" in str(error)
    assert "no reason" in str(VerbsError("ibv_poll_cq", 0, "a queue"))


def test_bytes_of_an_array_share_its_memory() -> None:
    array = np.zeros((4, 3), np.float32)
    view = bytes_of(array)
    view[0:4] = np.frombuffer(np.float32(5).tobytes(), np.uint8)
    assert array[0, 0] == 5 and view.size == 48


# What follows needs the providers, though no device: it runs in the guest, where both are.


@pytest.mark.rdma
@pytest.mark.parametrize(
    ("enum", "prefix", "names"),
    [
        ("ibv_wc_status", "IBV_WC_", verbs.STATUS_NAMES),
        ("ibv_event_type", "IBV_EVENT_", verbs.EVENT_NAMES),
        ("ibv_qp_state", "IBV_QPS_", verbs.STATE_NAMES),
    ],
)
def test_names_are_those_of_the_header(enum: str, prefix: str, names: tuple[str, ...]) -> None:
    """Counted from 0 in the header as here; a newer header may have more at the end."""
    header = Path("/usr/include/infiniband/verbs.h").read_text()
    body = re.search(rf"enum {enum} {{(.*?)}};", header, re.DOTALL)
    assert body is not None
    found = re.findall(rf"{prefix}(\w+)", re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL))
    assert tuple(found[: len(names)]) == names


@pytest.mark.rdma
def test_providers_offer_the_seam(provider: Any) -> None:
    for protocol in (verbs.Context, verbs.MemoryRegion, verbs.CompletionQueue, verbs.QueuePair):
        offered = getattr(provider, protocol.__name__)
        for member in (m for m in vars(protocol) if not m.startswith("_")):
            assert hasattr(offered, member), f"{provider.NAME}: {protocol.__name__}.{member}"
    assert provider.NAME in verbs.PROVIDERS


@pytest.mark.rdma
def test_pyverbs_takes_the_arguments_of_the_seam() -> None:
    """The compiled provider has no signatures to look at; every test calls it the same way."""
    provider = verbs.load_provider("pyverbs")
    for protocol in (verbs.Context, verbs.MemoryRegion, verbs.CompletionQueue, verbs.QueuePair):
        for name, method in vars(protocol).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                own = getattr(getattr(provider, protocol.__name__), name)
                wanted, offered = (inspect.signature(f).parameters for f in (method, own))
                assert list(wanted) == list(offered), f"{protocol.__name__}.{name}"
                defaults = [(wanted[p].default, wanted[p].kind) for p in wanted]
                assert defaults == [(offered[p].default, offered[p].kind) for p in offered], name


@pytest.mark.rdma
@pytest.mark.nightly  # a process of its own, which costs seconds there
def test_importing_pyverbs_leaves_logging_alone() -> None:
    program = (
        "import logging; logging.root.setLevel(35); from cktrain.comm.transport import verbs;"
        "verbs.load_provider('pyverbs'); print(logging.root.handlers, logging.root.level)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["[]", "35"]
