"""A program of several ranks, on the transport of CKTRAIN_TEST_TRANSPORT; its first argument says what it does."""

from __future__ import annotations

import logging
import os
import sys
import traceback

import conformance

from cktrain.comm import bootstrap
from cktrain.comm.errors import CommError
from cktrain.comm.group import Group


def run_conformance(group: Group) -> None:
    names = conformance.run(group)
    if group.rank == 0:
        print(f"checks run: {len(names)}", flush=True)


PROGRAMS = {program.__name__: program for program in (run_conformance,)}


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    group = bootstrap.init(
        transport=os.environ.get("CKTRAIN_TEST_TRANSPORT", "shm"),
        timeout_s=float(os.environ.get("CKTRAIN_TEST_TIMEOUT", "30")),
    )
    try:
        status = PROGRAMS[sys.argv[1]](group) or 0
        group.close()
    except BaseException as error:
        if isinstance(error, CommError):
            print(error, flush=True)
        else:
            traceback.print_exc()
        bootstrap.abort(group, 1)
    return status


if __name__ == "__main__":
    sys.exit(main())
