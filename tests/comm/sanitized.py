"""Runs the engine in a given file through all that it does; `test_sanitizers.py` builds it with a sanitizer."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys


def load_engine(path: str) -> None:
    """Put the extension in `path` in the place of the installed one."""
    spec = importlib.util.spec_from_file_location("cktrain.comm._engine", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cktrain.comm._engine"] = module
    spec.loader.exec_module(module)


def main() -> None:
    """Conformance in brief, many operations in flight, a mismatch and a lost rank, on both transports."""
    load_engine(sys.argv[1])
    import numpy as np
    from crew import Crew
    from soak import soak

    from cktrain.comm import _engine, engine_group, standstill
    from cktrain.comm.errors import CollectiveMismatchError, CommError
    from cktrain.comm.group import Group

    assert _engine.__file__ == sys.argv[1]
    # Waits ask every millisecond who is missing and whether the ranks wait in a circle, while the engine moves on.
    engine_group._SLICE_S, standstill.AFTER_S = 0.001, 0.0

    def differ(group: Group) -> str:
        try:
            group.all_reduce(np.zeros(5 + group.rank // 2, np.float32))
        except CollectiveMismatchError:
            return "mismatch"
        return "nothing"

    def lose(group: Group) -> str:
        peers = group._peers  # type: ignore[attr-defined]
        work = group.all_reduce(np.zeros(300_000, np.float32), async_=True) if group.rank != 1 else None
        if work is None:
            ends = peers.control if hasattr(peers, "control") else peers.sockets
            for end in ends.values():  # what its peers see when it ends
                end.shutdown(socket.SHUT_RDWR)
        try:
            (work or group.recv(np.zeros(5, np.float32), 0, async_=True)).wait(20)
        except CommError as error:
            return type(error).__name__
        return "nothing"

    for transport in ("shm", "tcp"):
        crew = Crew(transport, 3)
        crew.do(lambda group: soak(group, steps=250, seed=3))
        crew.close()
        crew = Crew(transport, 3)
        assert crew.do(differ) == ["mismatch"] * 3
        crew.broken = True
        crew.close()
        crew = Crew(transport, 3)
        assert crew.do(lose) == ["PeerLostError"] * 3
        crew.broken = True
        crew.close()
    print("engine: checked", flush=True)
    os._exit(0)  # the interpreter's end takes modules apart while threads of broken groups run


main()
