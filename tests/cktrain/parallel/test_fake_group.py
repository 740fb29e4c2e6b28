"""Groups that move nothing: what they note is what a rank of a real group sends."""

from __future__ import annotations

import numpy as np

from cktrain.parallel.fake_group import FakeGroup


def test_all_to_all_notes_what_goes_to_others():
    group = FakeGroup(1, 4, "data")
    even, sent = np.zeros(8, np.float32), np.zeros(9, np.int64)
    assert group.all_to_all(np.zeros(8, np.float32), even, async_=True).done()
    assert (group.traffic.nbytes, group.traffic.calls) == (6 * 4, 1)
    received = np.full(5, 7, np.int64)
    group.all_to_all(received, sent, [0, 2, 3, 0], [3, 2, 0, 4])
    assert (group.traffic.nbytes, group.traffic.calls) == (6 * 4 + 7 * 8, 2)
    assert np.all(received == 7)
    alone = FakeGroup(0, 1, "tensor")
    alone.all_to_all(np.zeros(2), np.zeros(2), [2], [2])
    assert alone.traffic.calls == 0
