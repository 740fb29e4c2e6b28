"""A user without rights registers memory with a device, after what cktrain says of the system.

registering.py PROVIDER DEVICE [LOCKABLE_BYTES], forked by tests/comm/forked.py as root
"""

import os
import resource
import sys

import numpy as np

from cktrain.comm.transport import rdma_device, verbs

NOBODY = 65534


def main() -> int:
    name, device, *limit = sys.argv[1:]
    if limit:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (int(limit[0]), int(limit[0])))
    os.setgroups([])
    os.setresuid(NOBODY, NOBODY, NOBODY)  # with which all capabilities go
    found = rdma_device.problems(rdma_device.describe_system(), one_host=True, register_bytes=1 << 20)
    for problem in found:
        print("problem:", problem.reason, "|", problem.remedy)
    verbs.load_provider(name).open_device(device).register(np.zeros(1 << 20, np.uint8))
    return 0
