"""Whether fine-tuning reaches its goals on this machine: speed beside PEFT, memory, packing, a slow wire, and plans.

    python docs/benchmarks/finetune_reach.py ROW... [--rounds 7] [--folder build/reach] [--compiled] [--model models/smollm2]

| ROW | what is measured |
|---|---|
| peft | a LoRA step of SmolLM2-135M's shape, T 512 x 4, beside PEFT on PyTorch, and beside a step of all weights |
| full | a LoRA step over a step of all weights, of Llama-3.2-1B's shape, T 512 x 1, with 4 of its 16 layers |
| memory | Llama-3.2-1B's shape, LoRA, T 512 x 1, frozen weights in bf16: the highest Pss, loading included |
| packing | rows as long as Alpaca's, T 2048, SmolLM2's shape with 10 layers: packed, and a padded row per sequence |
| wire | two ranks of llama-1b-4 over TCP at 1 Gb/s beside the same over shared memory (needs root, ip and tc) |
| plan | `cktrain plan` of five configurations beside their runs |

In each round every contender takes one step, in turn; a ratio is the median of the rounds' ratios. One contender stands
there twice, and the ratios of the two, round by round, are the spread that the machine gives by itself. Models have random
weights (finetune_workers.py), in files of bf16. `peft` takes PEFT as it is, and --compiled by torch.compile, too; `packing`
needs the tokenizer and chat template of --model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contenders import Workers, take_turns
from finetune_workers import LORA, configuration, model_folder, start

ROOT = Path(__file__).resolve().parents[2]
GIGABIT = "1gbit"
PLANNED: dict[str, dict[str, Any]] = {
    "SmolLM2-135M, LoRA, T 512 x 2": {"shape": "smollm2", "length": 512, "rows": 2},
    "SmolLM2-135M, all weights, T 512 x 1": {"shape": "smollm2", "length": 512, "rows": 1, "adapter": None},
    "SmolLM2-135M, DoRA of rank 8 on q and v, T 256 x 2": {
        "shape": "smollm2",
        "length": 256,
        "rows": 2,
        "adapter": {"r": 8, "target_modules": ["q_proj", "v_proj"], "use_dora": True},
    },
    "SmolLM2-135M, LoRA, T 1024 x 1, blocks computed again": {
        "shape": "smollm2",
        "length": 1024,
        "rows": 1,
        "memory": {"checkpointing": "block"},
    },
    "Llama-3.2-1B's shape with 4 layers, LoRA, T 256 x 1": {"shape": "llama-1b-4", "length": 256, "rows": 1},
}


def ratio(above: Workers, below: Workers) -> str:
    """The median of the rounds' ratios of the times, and the least and the greatest."""
    by_round = [a / b for a, b in zip(above.times, below.times, strict=True)]
    return f"{statistics.median(by_round):.3f} ({min(by_round):.3f} to {max(by_round):.3f})"


def table(contenders: Sequence[Workers], tokens: int) -> list[str]:
    """A row for each contender of steps of so many tokens."""
    lines = ["| | seconds a step (least to most) | tokens/s | peak RSS, GB |", "|---|---|---|---|"]
    for one in contenders:
        median = statistics.median(one.times)
        lines.append(
            f"| {one.name} | {median:.2f} ({min(one.times):.2f} to {max(one.times):.2f}) | {tokens / median:,.0f} "
            f"| {one.peak_rss / 1e9:.2f} |"
        )
    return [*lines, ""]


def beside_peft(options: argparse.Namespace) -> list[str]:
    """cktrain with LoRA twice and with all weights; PEFT."""
    folder, length, rows = options.folder, 512, 4
    theirs = {"folder": str(model_folder(folder, "smollm2")), "length": length, "rows": rows}
    ours = lora_and_full(folder, "smollm2", length, rows)
    peft = [
        start(f"PEFT, {'compiled' if compiled else 'eager'}", "peft", {**theirs, "compiled": compiled})
        for compiled in ([False, True] if options.compiled else [False])
    ]
    take_turns([*ours, *peft], options.rounds, 1)
    return [
        *table([*ours, *peft], length * rows),
        *(f"{one.name} / LoRA: {ratio(one, ours[0])}" for one in peft),
        *lora_ratios(ours),
    ]


def lora_and_full(folder: Path, shape: str, length: int, rows: int) -> list[Workers]:
    """cktrain with LoRA, with all weights, and with LoRA again."""
    adapters = {"LoRA": LORA, "all weights": None, "LoRA again": LORA}
    return [
        start(name, "cktrain", configuration(folder, f"{shape} {name}", shape, length, rows, adapter=adapter))
        for name, adapter in adapters.items()
    ]


def lora_ratios(ours: Sequence[Workers]) -> list[str]:
    """Of `lora_and_full`, once they have taken their turns."""
    lora, full, again = ours
    return [f"LoRA / all weights: {ratio(lora, full)}", f"LoRA again / LoRA: {ratio(again, lora)}"]


def lora_over_full(options: argparse.Namespace) -> list[str]:
    """LoRA, all weights, LoRA again, of the larger shape."""
    length, rows = 512, 1
    ours = lora_and_full(options.folder, "llama-1b-4", length, rows)
    take_turns(ours, options.rounds, 1)
    return [*table(ours, length * rows), *lora_ratios(ours)]


class PssWatch:
    """The highest proportional set size of a process, looked up every 50 ms; as a context."""

    def __init__(self, pid: int) -> None:
        self.highest = self.last = 0
        self._pid, self._end = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PssWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            try:
                lines = Path(f"/proc/{self._pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # it is gone, or has not begun
                continue
            found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")]
            if found:
                self.last = found[0]
                self.highest = max(self.highest, self.last)


def watched(name: str, values: dict[str, Any], steps: int) -> tuple[Workers, PssWatch]:
    """A contender after so many steps, which has ended, and what it held from its start on."""
    command = [sys.executable, str(Path(__file__).with_name("finetune_workers.py")), "cktrain"]
    pipe = subprocess.PIPE
    process = subprocess.Popen([*command, json.dumps(values), "1"], stdin=pipe, stdout=pipe, text=True)
    with PssWatch(process.pid) as watch:
        worker = Workers(name, [process])
        for _ in range(steps):
            worker.steps(1)
    worker.close()
    return worker, watch


def memory(options: argparse.Namespace) -> list[str]:
    """One process that loads, warms up and takes two steps."""
    values = configuration(options.folder, "memory", "llama-1b", 512, 1)
    worker, watch = watched("llama-1b", values, 2)
    return [
        f"highest Pss {watch.highest / 1e9:.2f} GB, loading included; {watch.last / 1e9:.2f} GB after the last step; "
        f"{statistics.median(worker.times):.1f} s a step"
    ]


def alpaca_rows(file: Path, count: int) -> None:
    """Instructions and answers of common words; the lengths are log-normal, with the template's tokens 90 in the median."""
    import numpy as np

    words = [
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "that",
        "for",
        "it",
        "as",
        "was",
        "with",
        "be",
        "by",
        "on",
        "not",
    ]
    rng = np.random.default_rng(0)
    of_template = 37
    lengths = np.maximum(8, np.round(90 * np.exp(rng.normal(0, 0.6, count))) - of_template).astype(int)
    lines = []
    for length in lengths:
        chosen = [words[i] for i in rng.integers(0, len(words), length)]
        cut = max(1, round(0.3 * length))
        row = {"instruction": " ".join(chosen[:cut]), "output": " ".join(chosen[cut:])}
        lines.append(json.dumps(row) + "\n")
    file.write_text("".join(lines), encoding="utf-8")


def packing(options: argparse.Namespace) -> list[str]:
    """Packed, one row per sequence, packed again: LoRA steps of one sequence of 2,048 tokens."""
    from cktrain.data.chat.prepare import ChatOptions, prepare_chat

    if options.model is None:
        sys.exit(
            "[finetune_reach] packing needs a model with a tokenizer and a chat template. Give --model FOLDER."
        )
    folder, length = options.folder, 2048
    alpaca_rows(folder / "alpaca.jsonl", 4000)
    said, values = {}, {}
    for way in ("bfd", "none"):
        chat = ChatOptions(sequence_length=length, packing=way, validation_fraction=0.0)
        out = folder / f"alpaca-{way}"
        said[way] = prepare_chat(
            folder / "alpaca.jsonl", out, tokenizer=options.model, options=chat, reuse=True
        )["chat"]
        values[way] = configuration(
            folder,
            f"packing {way}",
            "smollm2-10",
            length,
            1,
            data={"path": str(out), "sequence_length": length},
        )
    again = {**values["bfd"], "run": {**values["bfd"]["run"], "dir": str(folder / "packing again")}}
    named = {"packed": values["bfd"], "one row per sequence": values["none"], "packed again": again}
    packed, alone, second = (start(name, "cktrain", config) for name, config in named.items())
    take_turns([packed, alone, second], options.rounds, 1)
    trained = {way: chat["trained_tokens"] / chat["sequences"] for way, chat in said.items()}
    gains = [
        (trained["bfd"] / mine) / (trained["none"] / theirs)
        for mine, theirs in zip(packed.times, alone.times, strict=True)
    ]
    apart = packed_losses_apart(values["bfd"], model_folder(folder, "smollm2-10"), 3)
    return [
        *table([packed, alone, second], length),
        f"rows: {said['bfd']['rows']:,}, in the median {said['bfd']['length']['p50']} tokens; packed into "
        f"{said['bfd']['sequences']:,} sequences, {100 * said['bfd']['packing_efficiency']:.1f} % filled",
        f"trained tokens in a sequence: {trained['bfd']:,.0f} and {trained['none']:,.1f}",
        f"trained tokens/s, packed / one row: {statistics.median(gains):.1f} ({min(gains):.1f} to {max(gains):.1f})",
        f"packed again / packed: {ratio(second, packed)}",
        f"losses of packed sequences beside those of their rows alone: at most {apart:.1e} nats per token apart",
    ]


def packed_losses_apart(values: dict[str, Any], model: Path, sequences: int) -> float:
    """How far the losses of some packed sequences are from the means over their rows, each computed alone, in fp32."""
    import numpy as np

    import cktrain as ck
    from cktrain.comm.solo_group import SoloGroup
    from cktrain.compose import compose
    from cktrain.config import Config

    alone = ck.load(model)
    still = {
        **values,
        "optimizer": {"lr": 0.0},
        "run": {**values["run"], "dir": values["run"]["dir"] + " still"},
    }
    run = compose(Config.model_validate(still), SoloGroup(), len(os.sched_getaffinity(0)))
    apart = 0.0
    try:
        for index in range(sequences):
            batch = run.loader.micro_batches(index)[0]
            assert batch.first is not None, "packed rows have their borders"
            total, count = 0.0, 0
            for begin in np.unique(batch.first[0]):
                mine = batch.first[0] == begin
                labels = np.concatenate([[-100], batch.labels[0, mine][:-1]])
                if (labels >= 0).any():
                    total -= float(alone.log_probabilities(batch.ids[0, mine], labels).sum(dtype=np.float64))
                    count += int((labels >= 0).sum())
            apart = max(apart, abs(run.trainer.step().loss - total / count))
    finally:
        run.close()
    return apart


TRANSFER = """
import socket, sys, time
address, size = (sys.argv[2], 29400), 100_000_000
if sys.argv[1] == "take":
    server = socket.create_server(address)
    print("ready", flush=True)
    peer, began, got = server.accept()[0], time.perf_counter(), 0
    while got < size:
        got += len(peer.recv(1 << 20))
    print(size * 8 / (time.perf_counter() - began) / 1e9)
else:
    socket.create_connection(address).sendall(bytes(size))
"""


def wire(options: argparse.Namespace) -> list[str]:
    """Two ranks on hosts of network namespaces, whose wire is shaped at both ends, and two over shared memory, twice."""
    sys.path.insert(0, str(ROOT / "tests" / "namespaces"))
    from cluster import Cluster, not_ready

    if why := not_ready():
        sys.exit(f"[finetune_reach] wire: {why}")
    folder, length = options.folder, 128
    cpus = sorted(os.sched_getaffinity(0))[:2]
    secret = folder / "secret"
    secret.write_bytes(os.urandom(32))
    secret.chmod(0o600)
    common = {"WORLD_SIZE": "2", "MASTER_PORT": "29411", "CKTRAIN_SECRET_FILE": str(secret)}
    ranks = [{**common, "RANK": str(rank)} for rank in range(2)]

    def values(name: str, transport: str, bind: str) -> dict[str, Any]:
        return configuration(
            folder,
            f"wire {name}",
            "llama-1b-4",
            length,
            1,
            batch={"micro_batch_size": 1, "global_batch_size": 2},
            comm={"transport": transport},
            launch={"bind": bind},  # `auto` takes one core for a launcher's choice, and widens it
        )

    with Cluster(folder) as cluster:
        first = cluster.hosts[0]
        for host in cluster.hosts:
            shape = ["tc", "qdisc", "add", "dev", "wire", "root", "tbf", "rate", GIGABIT, "burst", "256kb"]
            subprocess.run(["ip", "netns", "exec", host, *shape, "latency", "50ms"], check=True)
        taken = subprocess.Popen(
            cluster.inside(first, sys.executable, "-c", TRANSFER, "take", first),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert taken.stdout is not None and taken.stdout.readline() == "ready\n"
        give = cluster.inside(cluster.hosts[1], sys.executable, "-c", TRANSFER, "give", first)
        subprocess.run(give, check=True)
        rate = float(taken.communicate()[0])
        tcp = start(
            "TCP at 1 Gb/s",
            "cktrain",
            values("tcp", "tcp", "inherit"),
            commands=[
                cluster.inside(host, "taskset", "-c", str(cpu))
                for host, cpu in zip(cluster.hosts, cpus, strict=True)
            ],
            environments=[
                {**one, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": first} for one in ranks
            ],
        )
        shm = [
            start(
                name,
                "cktrain",
                values(name, "shm", "auto"),
                commands=[(), ()],
                environments=[
                    {
                        **one,
                        "LOCAL_RANK": one["RANK"],
                        "LOCAL_WORLD_SIZE": "2",
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": port,
                    }
                    for one in ranks
                ],
            )
            for name, port in (("shared memory", "29412"), ("shared memory again", "29413"))
        ]
        take_turns([tcp, *shm], options.rounds, 1)
    waited = ", ".join(f"{one.name} {1e3 * statistics.median(one.waited):,.0f} ms" for one in (tcp, *shm))
    return [
        f"the wire gave {rate:.2f} Gb/s to one stream of 100 MB",
        "",
        *table([tcp, *shm], 2 * length),
        f"speed over TCP / over shared memory: {ratio(shm[0], tcp)}",
        f"shared memory again / shared memory: {ratio(shm[1], shm[0])}",
        f"waited in a step, in the median: {waited}",
    ]


def undisturbed_plan(file: Path, tries: int = 4) -> dict[str, Any]:
    """What `cktrain plan --json` says; one that other work disturbed is made again, so many times at most."""
    command = [sys.executable, "-m", "cktrain.launch.cli", "plan", str(file), "--json"]
    for _ in range(tries):
        plan = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if "OTHER WORK" not in plan["source"]:
            break
    return plan


def plans(options: argparse.Namespace) -> list[str]:
    """Each configuration is planned, run for a median of 5 steps, and planned again; a plan that other work disturbed, as it
    then says by itself, is made again."""
    import yaml

    lines = [
        "| | memory planned, GB | held | planned / held | seconds planned | measured | planned / measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for index, (name, case) in enumerate(PLANNED.items()):
        values = configuration(options.folder, f"planned {index}", **case)
        file = options.folder / f"planned-{index}.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        before = undisturbed_plan(file)
        worker, watch = watched(name, values, 5)
        after = undisturbed_plan(file)
        held, seconds = watch.highest, statistics.median(worker.times)
        bytes_, step = before["node_bytes"], (before["step"]["step"] + after["step"]["step"]) / 2
        lines.append(
            f"| {name} | {bytes_ / 1e9:.3f} | {held / 1e9:.3f} | {bytes_ / held:.3f} | {step:.2f} | {seconds:.2f} "
            f"| {step / seconds:.3f} |"
        )
    return lines


ROWS = {
    "peft": beside_peft,
    "full": lora_over_full,
    "memory": memory,
    "packing": packing,
    "wire": wire,
    "plan": plans,
}


def cpu_name() -> str:
    """As the kernel says it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )


def main() -> None:
    """Print a section for each row."""
    parser = argparse.ArgumentParser(description="Whether fine-tuning reaches its goals on this machine.")
    parser.add_argument("row", nargs="+", choices=ROWS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("build/reach"), help="for models and runs")
    parser.add_argument("--compiled", action="store_true", help="PEFT by torch.compile, too")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder with tokenizer and chat template")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    from cktrain import cython_kernels

    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {cython_kernels.load().isa}, fp32\n")
    for row in options.row:
        began = time.perf_counter()
        lines = ROWS[row](options)
        print("\n".join([f"## {row}", "", *lines]))
        print(f"\n{options.rounds} rounds; {math.ceil(time.perf_counter() - began)} s in all\n", flush=True)


if __name__ == "__main__":
    main()
