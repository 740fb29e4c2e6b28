"""Mistakes that the tests must notice: each mutant is one edit of a copy of the tree, and its test has to fail there.

A copy holds the Python sources and links to the built extensions under their import names, so no mutant needs a build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cktrain import comm, cython_kernels, launch

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """`old` -> `new` in `file`; `test` passes without the edit and fails with it."""

    name: str
    file: str
    old: str
    new: str
    test: str


DORA = "tests/cktrain/nn/test_linear.py::test_dora_norms_the_rows_and_takes_the_norms_for_constants"
MUTANTS = [
    Mutant(
        "mean of the micro-batches' means",
        "cktrain/parallel/pipeline.py",
        "sums[action.micro_batch] = self._forward(batch, slot, number, objective, train=True)\n",
        "loss, count, *_ = self._forward(batch, slot, number, objective, train=True)\n"
        "                sums[action.micro_batch] = LossSums(loss / max(count, 1), 1, 1)\n",
        "tests/cktrain/training/test_trainer.py::test_unequal_ignore_counts_are_weighted_by_token",
    ),
    Mutant(
        "rotary pairs (2i, 2i+1) instead of (i, i + D/2)",
        "cython_kernels/reference/rope.py",
        "low, high = wide[..., : d // 2], wide[..., d // 2 :]",
        "low, high = wide[..., 0::2], wide[..., 1::2]",
        "tests/cktrain/models/test_golden.py",
    ),
    Mutant(
        "no decay group: norm weights and biases decay too",
        "cktrain/optim/optimizer.py",
        "self.config.weight_decay if segment.decay else 0.0",
        "self.config.weight_decay",
        "tests/cktrain/training/test_trainer.py::test_weight_decay_spares_biases_and_norms",
    ),
    Mutant(
        "a periodic save that fails ends the run",
        "cktrain/training/checkpoint_saver.py",
        "if not error.may_pass:",
        "if True:",
        "tests/cktrain/training/test_checkpoint_saver.py::test_a_run_outlives_a_full_disk",
    ),
    Mutant(
        "the loss mask is of the token that is read, not of the one that is predicted",
        "cktrain/data/loader.py",
        "source.learned(start + 1, count - 1)",
        "source.learned(start, count - 1)",
        "tests/cktrain/data/test_loader.py::test_tokens_that_are_only_read_are_no_labels",
    ),
    Mutant(
        "a part of a mixture begins anew with each stage",
        "cktrain/data/mixture.py",
        "self._before[stage][part] + index",
        "index",
        "tests/cktrain/data/test_mixture.py::test_stages_by_hand",
    ),
    Mutant(
        "Muon orthogonalises query, key and value as one matrix",
        "cktrain/optim/muon.py",
        "param.parts or (param.shape[0],)",
        "(param.shape[0],)",
        "tests/cktrain/optim/test_muon.py",
    ),
    Mutant(
        "optimizer state missing from the checkpoint",
        "cktrain/checkpoint.py",
        "_read_moments(param, optimizer, stored)",
        "pass",
        "tests/cktrain/test_checkpoint.py::test_resume_is_bitwise",
    ),
    Mutant(
        "gradients not cleared between steps",
        "cktrain/memory/param.py",
        "self._written = False",
        "self._written = True",
        "tests/cktrain/training/test_trainer.py::test_a_step_starts_from_no_gradient",
    ),
    Mutant(
        "gradients of ops that can only add not cleared",
        "cktrain/memory/param.py",
        "kernels.zero(self.grad)",
        "pass",
        "tests/cktrain/training/test_trainer.py::test_a_step_starts_from_no_gradient_after_a_skipped_one",
    ),
    Mutant(
        "logits rounded to bf16",
        "cktrain/nn/head.py",
        '"logits", (size, output.weight.shape[0]), self.num.master_dtype',
        '"logits", (size, output.weight.shape[0]), self.num.compute_dtype',
        "tests/cktrain/test_bf16.py::test_logits_are_not_rounded",
    ),
    Mutant(
        "the loss of a document's end looks into the next document",
        "cktrain/data/loader.py",
        "labels[ids == like.eos_id] = IGNORE_INDEX",
        "pass",
        "tests/cktrain/test_packed_documents.py::test_two_documents_in_one_sequence_are_the_two_alone",
    ),
    Mutant(
        "clipping by the norm of the sum instead of the mean",
        "cktrain/training/trainer.py",
        "norm = math.sqrt(sums.squared_norm) / count",
        "norm = math.sqrt(sums.squared_norm)",
        "tests/cktrain/training/test_trainer.py::test_clipping_bounds_the_norm",
    ),
    Mutant(
        "DoRA's norms have the cross term once",
        "cktrain/nn/adapters/dora.py",
        "squares[rows.rows] += 2 * s * np",
        "squares[rows.rows] += s * np",
        DORA,
    ),
    Mutant(
        "DoRA's magnitude has the gradient of the gain",
        "cktrain/nn/adapters/dora.py",
        "inverse[rows.rows] * along[rows.rows]",
        "along[rows.rows]",
        DORA,
    ),
    Mutant(
        "DoRA's b has the gradient of LoRA's",
        "cktrain/nn/adapters/dora.py",
        "self._add(b, gain[rows.rows, None] * raw)",
        "self._add(b, raw)",
        DORA,
    ),
    Mutant(
        "each rank norms its own columns of DoRA's rows",
        "cktrain/nn/adapters/dora.py",
        "linear.layout.sum_over_inputs(squares)\n        return",
        "return",
        "tests/cktrain/parallel/test_adapters.py::test_ranks_compute_the_losses_of_one"
        "[dora-base frozen-llama-data 1 x pipeline 1 x tensor 2]",
    ),
    Mutant(
        "DoRA is merged without its magnitudes",
        "cktrain/nn/adapters/dora.py",
        "part *= (magnitude.weight.data * _inverse(norms))[:, None].astype(weight.dtype)",
        "part *= 1",
        DORA,
    ),
    Mutant(
        "a folder's rows are merged with DoRA's magnitudes and keep their norms",
        "cktrain/hf/peft_merge.py",
        "gain = _whole(magnitude) / np.sqrt(np.where(squares > 0, squares, 1))",
        "gain = _whole(magnitude)",
        "tests/cktrain/hf/test_peft_folder.py::test_the_folder_beside_the_base_and_the_merged_base_are_the_run"
        "[float32-llama, dora]",
    ),
    Mutant(
        "a forked child keeps its parent's connections open",
        "comm/tcp_group.py",
        "                connection.close()\n            ours.meeting.close()",
        "                pass\n            ours.meeting.close()",
        "tests/comm/test_faults.py::test_killed_rank_that_has_forked[tcp]",
    ),
    Mutant(
        "a rank's reasons are not told",
        "comm/rendezvous.py",
        '"reasons": as_message(reasons or {}),',
        '"reasons": as_message({}),',
        "tests/comm/test_reasons.py::test_one_rank_without_the_interface_is_told_by_all",
    ),
    Mutant(
        "a rank takes what its engine has under way for what it has yet to begin",
        "comm/engine_group.py",
        "return on is None or ((not on.pending or follows(on)) and on.begun < number)",
        "return True",
        "tests/comm/test_faults.py::test_groups_in_another_order_are_no_mismatch[tcp]",
    ),
]

EQUALITY = "tests/integration/test_parallel_equality.py::test_one_layout_in_fp64"
PARALLEL_MUTANTS = [
    Mutant(
        "a tied gradient dropped: first and last stage each keep their own",
        "cktrain/parallel/model_shard.py",
        "[*self._on_tensor_ranks(), *self._on_two_stages(tied)]",
        "self._on_tensor_ranks()",
        f"{EQUALITY}[llama tied-pipeline 2]",
    ),
    Mutant(
        "the norm reduced over the data group instead of the world",
        "cktrain/parallel/step_reduction.py",
        "ranks.world.all_reduce(vector",
        "ranks.data.all_reduce(vector",
        f"{EQUALITY}[gpt2-tensor 2]",
    ),
    Mutant(
        "padding in the softmax",
        "cktrain/parallel/tensor.py",
        "min(share, words - first)",
        "share",
        f"{EQUALITY}[gpt2-tensor 2]",
    ),
    Mutant(
        "a replicated key/value head's gradient summed twice",
        "cktrain/parallel/model_shard.py",
        "_rows_of(param, (start - first, stop - first), group)\n",
        "_rows_of(param, (start - first, stop - first), g) for g in (group, tensor)\n",
        f"{EQUALITY}[llama-tensor 4]",
    ),
    Mutant(
        "a replicated gradient counted by every rank in the norm",
        "cktrain/parallel/partial_gradients.py",
        "for p in partial if p.group.rank != 0)",
        "for p in partial if p.group.rank > 99)",
        f"{EQUALITY}[gpt2-tensor 2]",
    ),
    Mutant(
        "a bias after a row-divided product added by every rank",
        "cktrain/parallel/layouts.py",
        "self.adds_bias = region.group.rank == 0",
        "self.adds_bias = True",
        f"{EQUALITY}[gpt2-tensor 2]",
    ),
]


def copy_tree(to: Path) -> None:
    """The package under its import names, and the tests, in `to`."""
    built = shutil.ignore_patterns("*.so", "csrc")
    shutil.copytree(ROOT / "cktrain", to / "cktrain", ignore=built)
    for room, module in (("comm", comm), ("cython_kernels", cython_kernels), ("launch", launch)):
        shutil.copytree(ROOT / room, to / "cktrain" / room, ignore=built)
        for extension in Path(module.__file__).parent.rglob("*.so"):
            target = to / "cktrain" / room / extension.relative_to(Path(module.__file__).parent)
            target.symlink_to(extension)
    shutil.copytree(ROOT / "tests", to / "tests")
    shutil.copy(ROOT / "pyproject.toml", to)


def run_test(tree: Path, test: str) -> subprocess.CompletedProcess[str]:
    """pytest's result for `test` in the copied tree."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-m",
            "not judge",
            test,
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_makes_its_test_fail(mutant, tmp_path):
    check_that_it_fails(mutant, tmp_path)


@pytest.mark.mpi
@pytest.mark.parametrize("mutant", PARALLEL_MUTANTS, ids=lambda m: m.name)
def test_a_mutant_of_parallelism_makes_its_test_fail(mutant, tmp_path):
    """Their tests pass unchanged in the same stage (test_parallel_equality.py)."""
    check_that_it_fails(mutant, tmp_path)


def check_that_it_fails(mutant: Mutant, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    copy_tree(tree)
    room, _, rest = mutant.file.partition("/")
    file = tree / "cktrain" / ("" if room == "cktrain" else room) / rest
    source = file.read_text()
    assert source.count(mutant.old) == 1, f"{mutant.file} changed: mend the mutant"
    file.write_text(source.replace(mutant.old, mutant.new))
    result = run_test(tree, mutant.test)
    assert result.returncode == 1, f"the mutant lives:\n{result.stdout[-3000:]}{result.stderr[-1000:]}"
    assert " failed" in result.stdout, result.stdout[-3000:]


def test_the_copied_tree_passes_unchanged(tmp_path):
    """Otherwise a mutant could fail for another reason."""
    tree = tmp_path / "tree"
    copy_tree(tree)
    for test in sorted({mutant.test for mutant in MUTANTS}):
        result = run_test(tree, test)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
