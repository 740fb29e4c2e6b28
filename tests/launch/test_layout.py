"""The table of `cktrain launch --dry-run`, on described machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from cktrain.config import LaunchConfig
from cktrain.launch.cli import main
from cktrain.launch.layout import HostFacts, lay_out, table, warnings
from cktrain.launch.topology_file import HostDescription, read_description
from cktrain.parallel.mesh import Mesh

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def hosts(*names: str, **machine) -> list[HostFacts]:
    topology = HostDescription(name="any", **machine).topology()
    return [HostFacts(name, topology, topology.cpus) for name in names]


def test_ranks_hosts_and_coordinates():
    two = hosts("a", "b", sockets=2, cores_per_node=4, nics=[{"name": "mlx5_0", "node": 0}])
    rows = lay_out(two, [2, 2], Mesh(data=2, pipeline=1, tensor=2), LaunchConfig())
    assert [(row.rank, row.host, row.place.packages, tuple(row.coordinates.values())) for row in rows] == [
        (0, "a", (0,), (0, 0, 0)),
        (1, "a", (1,), (0, 0, 1)),
        (2, "b", (0,), (1, 0, 0)),
        (3, "b", (1,), (1, 0, 1)),
    ]
    lines = table(rows, LaunchConfig()).splitlines()
    assert lines[0].split() == [
        *("rank", "host", "socket", "NUMA", "cores", "threads", "memory", "NIC", "progress"),
        *("data", "pipeline", "tensor"),
    ]
    assert lines[4].split() == ["3", "b", "1", "1", "4-7", "4", "node", "1", "mlx5_0", "-", "1", "0", "1"]
    assert warnings(rows, Mesh(2, 1, 2)) == [
        "warning: 2 of 2 tensor groups span sockets: activations cross that border in every layer. Choose "
        "parallel.tensor and the ranks per host so that groups fit."
    ]


def test_tensor_groups_across_hosts_are_said():
    rows = lay_out(hosts("a", "b", cores_per_node=4), [1, 1], Mesh(1, 1, 2), LaunchConfig())
    assert warnings(rows, Mesh(1, 1, 2))[0].startswith("warning: 1 of 1 tensor groups span hosts")


def test_more_ranks_than_cores_are_said():
    rows = lay_out(hosts("a", cores_per_node=2), [4], Mesh(4, 1, 1), LaunchConfig())
    assert "more ranks than cores on a" in warnings(rows, Mesh(4, 1, 1))[0]


def test_more_threads_than_cores():
    with pytest.raises(ValueError, match=r"threads: 5 on rank 0 \(a\), which has room for 4"):
        lay_out(hosts("a", cores_per_node=8), [2], Mesh(2, 1, 1), LaunchConfig(threads=5))


@pytest.mark.parametrize("mode", ["inherit", "none"])
def test_masks_that_somebody_else_gives_are_not_made_up(mode):
    launch = LaunchConfig(bind=mode)
    rows = lay_out(hosts("a", cores_per_node=8), [2], Mesh(2, 1, 1), launch)
    assert f"as given ({mode})" in table(rows, launch)


def test_the_example_on_a_laptop(capsys):
    """No rank of the described servers is started, and nothing of this machine is read."""
    line = ["launch", "--dry-run", "--topology", str(EXAMPLES / "topology.yaml")]
    assert main([*line, "-n", "8"]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [[str(rank), f"server{rank // 4}"] for rank in range(8)]
    assert rows[1][4] == "1-30"  # core 0 is hidden, 31 the communication's
    assert main(line) == 0  # a rank per NUMA node
    assert len(capsys.readouterr().out.splitlines()) == 1 + 16


def test_the_layout_of_a_configuration(capsys):
    line = ["launch", "--dry-run", "--topology", str(EXAMPLES / "topology.yaml"), "-n", "8"]
    assert main([*line, "train", str(EXAMPLES / "data_pipeline_tensor.yaml")]) == 0
    assert [row.split()[-3:] for row in capsys.readouterr().out.splitlines()[1:3]] == [
        ["0", "0", "0"],
        ["0", "0", "1"],
    ]
    assert (
        main([*line, "train", str(EXAMPLES / "data_pipeline_tensor.yaml"), "--set", "parallel.data=3"]) == 2
    )
    assert "data 3 x pipeline 2 x tensor 2 = 12 ranks, and 8 were started" in capsys.readouterr().err


def test_this_machine(capsys):
    assert main(["launch", "--dry-run", "-n", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["0", "localhost"]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("hosts: []", "hosts: list should have at least 1 item"),
        ("hosts: [{name: a, cores_per_node: 4, coers: 1}]", "hosts.0.coers: extra inputs"),
        ("hosts: [{name: a}]", "hosts.0.cores_per_node: field required"),
        (
            "hosts: [{name: a, cores_per_node: 4, nics: [{name: m, node: 1}]}]",
            "m is on node 1, and the nodes are 0 to 0",
        ),
        ("hosts: [{name: a, cores_per_node: 4, cores_per_cache: 3}]", "cores_per_node 4 is not a multiple"),
        ("hosts: [{name: a, cores_per_node: 4, hidden_cpus: x}]", "hosts.0"),
        ("hosts: [", "expected the node content"),
        ("- 1", "the file"),
        ("", "the file"),
        ("hosts: [{name: a, cores_per_node: 4, hidden_cpus: 0-99999999999}]", "is no list of CPUs"),
        ("hosts: [{name: a, cores_per_node: 4, hidden_cpus: 3-1}]", "'3-1' is no list of CPUs"),
        ("hosts: [{name: a, cores_per_node: 1000000000}]", "more than the 8,192 CPUs"),
        ("hosts: [{name: a, cores_per_node: 4, count: 1000000000}]", "less than or equal to 65536"),
        ("hosts: [{name: a, cores_per_node: 4.0}]", "valid integer, found 4.0"),
        ("hosts: &a [*a]", "nested deeper"),
        ("hosts: [{name: a, name: b}]", "the key stands twice"),
        ("\thosts: 1", "Indent with spaces"),
    ],
)
def test_bad_descriptions_are_named(tmp_path, text, complaint):
    path = tmp_path / "machines.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_description(path)
    assert str(path) in str(error.value) and complaint in str(error.value)


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["-n", "2"], "no command"),
        (["--env", "NOT_SET_HERE", "train", "x"], "--env NOT_SET_HERE: no variable of this name is set here"),
        (["--env", "A=1", "train", "x"], "--env A=1: no variable of this name is set here"),
        (["--topology", "x.yaml", "train", "x"], "Add --dry-run"),
        (["--hosts", "a:0", "train"], "train"),
        (["--dry-run", "--hosts", "a:0"], "'a:0' is not NAME or NAME:RANKS"),
        (["--dry-run", "--topology", str(EXAMPLES / "topology.yaml"), "-n", "3"], "give a multiple of 2"),
    ],
)
def test_bad_options(options, complaint, capsys):
    try:
        status = main(["launch", *options])
    except SystemExit as end:
        status = end.code
    assert status == 2 and complaint in capsys.readouterr().err
