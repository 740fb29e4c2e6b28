"""Which ranks share a node, and when operations go in two levels."""

from __future__ import annotations

import os
import socket

import pytest

from cktrain.comm.layout import node_name, nodes_of, why_flat


def test_nodes_come_in_the_order_of_their_first_ranks():
    assert nodes_of(["b", "a", "b", "a", "c"]) == [[0, 2], [1, 3], [4]]


def test_two_levels_need_equal_nodes_of_ranks_that_follow_each_other():
    assert why_flat([[0, 1], [2, 3]]) is None
    assert why_flat([[0, 1, 2], [3, 4, 5], [6, 7, 8]]) is None
    assert why_flat([[0, 1]]) == "all ranks are on one node"
    assert why_flat([[0], [1], [2]]) == "each node has one rank"
    assert "have 2, 3 ranks" in str(why_flat([[0, 1], [2, 3, 4]]))
    assert "ranks 0, 2 of a node" in str(why_flat([[0, 2], [1, 3]]))


@pytest.mark.parametrize("environ", [{}, {"CKTRAIN_NODE": "left"}])
def test_node_name(environ):
    name = node_name(environ)
    assert name == "left" if environ else name.startswith(socket.gethostname())
    assert environ or os.readlink("/proc/self/ns/net") in name
