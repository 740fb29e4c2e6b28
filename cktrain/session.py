"""One rank's run from a configuration to its end: lock and log, the other ranks, composition, training.

`cktrain train` and `cktrain.train` both are this, and differ in what they do with an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cktrain import __version__, cython_kernels
from cktrain.agreed import AgreedError
from cktrain.best_effort import BestEffort
from cktrain.comm import bootstrap
from cktrain.comm.environment import ProcessEnvironment
from cktrain.comm.group import Group
from cktrain.compose import Run, compose
from cktrain.config import Config
from cktrain.consistency_check import AgreedProblem, LoneProblem, agree_on_problem, check_agreement
from cktrain.folder_lock import lock_folder
from cktrain.host.bind import Binding
from cktrain.host.process import environment
from cktrain.host.walltime import stop_time
from cktrain.logs import remove_handlers, set_up_logging
from cktrain.nn.numerics import Numerics
from cktrain.saved_model import refuse_model_folder
from cktrain.system_error import in_words
from cktrain.training.progress_bar import StepBar
from cktrain.training.stop import StopFlag, StopRequested
from cktrain.training.trackers import missing_package, trackers
from cktrain.training.trainer import Trainer

if TYPE_CHECKING:
    from rich.console import Console

    from cktrain.trained_run import TrainedRun

log = logging.getLogger("cktrain")

TABLE_FILE = "collectives.json"
"""In the run's folder: which algorithms it uses."""


class Session:
    """The steps of a run's start, in order: `meet`, `compose`, `train`; `close` in any case."""

    def __init__(
        self,
        config: Config,
        process: ProcessEnvironment,
        binding: Binding,
        flag: StopFlag,
        environ: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        """`say` tells the user something before there is a log."""
        self.config = config
        self.flag = flag
        self.group: Group | None = None
        self.trainer: Trainer | None = None
        """Once the steps may begin."""
        self._process = process
        self._binding = binding
        self._environ = environ
        self._say = say
        self._locks = contextlib.ExitStack()
        self._console: Console | None = None
        self._problem = ""
        self._run: Run | None = None

    @property
    def trains(self) -> bool:
        """Whether the steps have begun: from then on the trainer answers the signals."""
        return self.trainer is not None and not self.flag.at_once

    @property
    def fate(self) -> str:
        """What became of the work of a run that an error ended."""
        return self.trainer.fate if self.trainer is not None else ""

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.config.run.dir)

    def meet(self) -> Group:
        """Take the run's folder, begin its log, and join the other ranks.

        What is wrong with the folder is kept until all ranks can hear of it, in `compose`. Raises CommError and
        StopRequested.
        """
        process = self._process
        try:  # before the ranks meet, so that what is said there is kept
            note = ""
            if process.rank == 0:
                refuse_model_folder(self.run_dir)
                note = "; ".join(
                    lock.note
                    for folder in owned_folders(self.run_dir)
                    if (
                        lock := self._locks.enter_context(lock_folder(folder, "cktrain train", self._say))
                    ).note
                )
            self._console = set_up_logging(self.run_dir, process.rank, process.size or 2)
            if note:
                log.warning("[lock] %s: %s", self.run_dir, note)
            log.info(self._binding.message)
        except ValueError as error:
            self._problem = str(error)
        self.flag.check()
        comm = self.config.comm
        self.group = bootstrap.init(
            transport=comm.transport,
            timeout_s=comm.timeout_s,
            environ=self._environ,
            engine_core=self._binding.progress_core,
            interface=comm.interface,
            algorithm=comm.algorithm,
            tcp_sockets=comm.tcp_sockets,
            table=self._table(),
            device=comm.device or self._binding.rdma_device,
            gid_index=comm.gid_index,
            traffic_class=comm.traffic_class,
        )
        self.flag.at_once = self.group.size == 1  # several ranks agree, so that none is left waiting
        return self.group

    def compose(self) -> Trainer:
        """Build what trains. Collective.

        Raises AgreedProblem, on all ranks with one text, for what the user can mend; LoneProblem for what only this
        rank is known to have met, while the others may wait for it; and StopRequested.
        """
        assert self.group is not None, "the ranks have met"
        config, group = self.config, self.group
        problem, stop_at = self._problem, None
        try:
            stop_at = stop_time(self._environ, config.launch.end_margin_s)
            kernels = cython_kernels.load()
            why = f" ({kernels.why})" if kernels.why else ""
            log.info("kernels: %s%s", kernels.label, why)
        except ValueError as error:
            problem = problem or str(error)
        if group.rank == 0:
            problem = problem or missing_package(config)
        self._agree(problem)
        try:
            check_agreement(group, config, __version__, kernels.label)
            self._run = compose(config, group, self._binding.threads)
        except AgreedError as error:
            raise AgreedProblem(str(error)) from None
        except (ValueError, MemoryError, OSError) as error:
            text = in_words(error) if isinstance(error, OSError) else str(error)
            kind = AgreedProblem if group.size == 1 else LoneProblem
            raise kind(text or "[memory] there is not enough") from None
        self._agree("")
        if group.rank == 0 and (tables := bootstrap.tables_of(group)) is not None:
            _keep_table(self.run_dir / TABLE_FILE, tables.text)
        trainer = self._run.trainer
        trainer.flag = self.flag
        trainer.flag.stop_at = stop_at
        trainer.peak_flops = _peak_flops(trainer.model.num, group)
        self._agree("")
        self.flag.at_once = False
        self.trainer = trainer
        return trainer

    def train(self, bar: bool = True) -> bool:
        """Train to the last step; False when a signal or the clock stopped it, after saving. Raises as `Trainer.run`."""
        assert self.trainer is not None and self._run is not None and self._console is not None
        if self.trainer.group.rank == 0:
            self.trainer.observers += trackers(self.config, self.trainer.progress.run)
            if bar:
                self.trainer.observers.append(StepBar(self._console))
        try:
            return self.trainer.run()
        finally:
            self._run.close()

    def has_saved(self) -> bool:
        """Whether this run has written a checkpoint, so that `checkpoint.resume: auto` goes on from it."""
        return self._run is not None and self._run.has_saved()

    def release(self) -> None:
        """Give the run's folder back."""
        self._locks.close()

    def _table(self) -> str | None:
        """The file of algorithms: a run that goes on keeps the one that it began with, so that its bits stay the same."""
        kept = self.run_dir / TABLE_FILE
        goes_on = self.config.checkpoint.resume != "none" and kept.exists()
        return str(kept) if goes_on else self.config.comm.table

    def _agree(self, problem: str) -> None:
        """Raise AgreedProblem on all ranks for what is wrong on any, each distinct problem with who has it.

        Raises StopRequested on all ranks when one of them was asked to stop.
        """
        assert self.group is not None
        if any(self.group.all_gather_bytes(b"stop" if self.flag.signal else b"")):
            raise StopRequested
        problem = agree_on_problem(problem, self.group)
        if problem:
            raise AgreedProblem(problem)


def owned_folders(run_dir: Path) -> list[Path]:
    """What this run alone writes to: its folder, and its checkpoints' where they are linked to from there."""
    checkpoints = run_dir / "checkpoints"
    return [run_dir, checkpoints.resolve()] if checkpoints.is_symlink() else [run_dir]


def train_here(config: Config, process: ProcessEnvironment, binding: Binding, bar: bool = True) -> TrainedRun:
    """Train in this process, as one rank where a launcher started several; see `cktrain.train`."""
    from cktrain.trained_run import TrainedRun

    flag = StopFlag()
    with contextlib.ExitStack() as owner:
        owner.callback(remove_handlers)
        session = Session(config, process, binding, flag, environment(), lambda text: print(text, flush=True))
        owner.callback(session.release)
        owner.enter_context(flag)
        group = session.meet()
        try:
            session.compose()
            done = session.train(bar)
        except StopRequested:
            group.close()
            raise KeyboardInterrupt(
                "stopped before the first step: nothing was trained, nothing is lost"
            ) from None
        except BaseException as error:
            if group.size > 1:  # the others wait for this rank
                log.error("%s %s", error, session.fate)
                session.release()
                bootstrap.abort(group, 1)
            if session.fate:
                log.error("%s", session.fate)
            raise
        group.close()
    return TrainedRun(session.run_dir, done)


def _keep_table(path: Path, text: str) -> None:
    remedy = "The run goes on; resumed, it may choose other algorithms."
    with BestEffort(f"[comm] {path} cannot be written", remedy):
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text)
        os.replace(temporary, path)


def _peak_flops(numerics: Numerics, group: Group) -> float:
    """What all ranks can compute at most, FLOP/s, all of them measured at the same time."""
    from cktrain.bench.peak import measure_flops

    group.barrier()
    mine = measure_flops(numerics.kernels, numerics.precision)
    return sum(float(rate) for rate in group.all_gather_bytes(str(mine).encode()))
