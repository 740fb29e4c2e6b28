"""Hosts as they are named, and where their ranks meet."""

from __future__ import annotations

import socket

import pytest

from cktrain.launch.hosts import Host, meeting_address, parse_hosts


@pytest.mark.parametrize(
    "text, hosts",
    [
        ("a:2,b:2", [Host("a", 2), Host("b", 2)]),
        ("a", [Host("a")]),
        ("a:1, b ,a:3", [Host("a", 4), Host("b")]),
        ("a,a:2", [Host("a")]),
        ("10.0.0.1:2", [Host("10.0.0.1", 2)]),
    ],
)
def test_hosts(text, hosts):
    assert parse_hosts(text) == hosts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,",
        ":2",
        "a:",
        "a:0",
        "a:x",
        "a:-1",
        "-oProxyCommand=x:1",
        "a:²",
        "a:1_0",
        "a:99999999",
        "a b:1",
        "a\n:1",
    ],
)
def test_what_is_no_host(text):
    with pytest.raises(ValueError, match="is not NAME or NAME:RANKS"):
        parse_hosts(text)


def test_this_machine_needs_no_shell():
    assert Host("localhost").here and Host(socket.gethostname()).here
    assert not Host("elsewhere.example").here


NET = [("docker0", "172.17.0.1"), ("eth0", "10.1.0.5"), ("ib0", "10.9.0.5")]


def test_meeting_address():
    assert meeting_address("10.9.0.5", NET, None) == "10.9.0.5"  # as the user calls it
    assert meeting_address("no-such-name.invalid", NET, None) == "10.1.0.5"
    assert meeting_address("a", NET, "ib0") == meeting_address("a", NET, "10.9.0.5") == "10.9.0.5"
    assert meeting_address("a", NET[:1], None) == "172.17.0.1"


def test_no_meeting_address():
    with pytest.raises(ValueError, match=r"--interface ib1: a has docker0 \(172.17.0.1\), eth0 \(10.1.0.5\)"):
        meeting_address("a", NET, "ib1")
    with pytest.raises(ValueError, match="no IPv4 address but loopback"):
        meeting_address("a", [], None)
