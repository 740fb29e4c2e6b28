"""The other process of a test: connects to it, and then waits to be killed.

peer.py PROVIDER DEVICE TIMEOUT, forked by tests/comm/forked.py
"""

import sys
import time

from ends import End, Meeting, die_with_parent

from cktrain.comm.transport.queue_pair import Settings
from cktrain.comm.transport.verbs import load_provider


def main() -> int:
    die_with_parent()
    name, device, timeout = sys.argv[1:]
    end = End(load_provider(name), device, size=4 << 20, settings=Settings(timeout=int(timeout)))
    with Meeting("B") as meeting:
        end.connect(meeting.exchange(end.card()))
        meeting.exchange()
    time.sleep(600)
    return 0
