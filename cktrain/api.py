"""What a script or a notebook calls: bind this process, load a model, let it write, train one, fine-tune one, evaluate one.

This module is light: the functions bind the process to its cores first, and then import what needs numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from cktrain.host.process import bind_for, bind_once, rank_of_this_process

if TYPE_CHECKING:
    from cktrain.evaluation.evaluate import Evaluation
    from cktrain.loaded_model import Model
    from cktrain.trained_run import TrainedRun

PRECISIONS = {
    "fp32": "fp32",
    "float32": "fp32",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp64": "fp64",
    "float64": "fp64",
}


def bind(threads: int | None = None) -> int:
    """Bind this process to its cores, before `import numpy`; returns the number of threads that the kernels have.

    `load` and `train` do it too; to be called where numpy is imported before them. It is done once in a process.

    Args:
        threads: of the kernels; None: one per core that the process may use (its affinity mask, its cgroup's quota).

    Raises:
        ValueError: the process has fewer cores.
    """
    return bind_once(threads).threads


def load(
    path: str | Path,
    *,
    quantize: str | None = None,
    activations: str = "exact",
    adapter: str | Path | None = None,
    dtype: str | None = None,
    kv_dtype: str | None = None,
    tokenizer: str | Path | None = None,
    any_tokenizer: bool = False,
    special_tokens: str | None = None,
    threads: int | None = None,
) -> Model:
    """Open a model: a Hugging Face folder, a GGUF file, a run (its newest whole checkpoint), or one of its checkpoints.

    Args:
        path: the folder or the file.
        quantize: how the matrices are held (docs/quantized.md): "q8_0", "q6_k", "q5_0", "q4_0", "q4_1", "q4_k", "mxfp4",
            "nf4", or "stored", as the files have them; None: in the type that is computed in, or as the run of an adapter
            held them.
        activations: "q8" rounds up to 8 rows at a time, those of a text that is written, to 8 bits for products with
            quantized matrices; "exact": none.
        adapter: PEFT's folder, or a run of an adapter, that stands beside a Hugging Face folder; a run of an adapter given
            as the path has its own.
        dtype: what products are computed in: "fp32" (None), "bf16", or "fp64" on the reference kernels
            (CKTRAIN_ISA=reference).
        kv_dtype: what keys and values are kept in while generating: "fp32" or "bf16"; None: what products are computed in.
        tokenizer: folder with a tokenizer.json instead of the model's own.
        any_tokenizer: take `tokenizer` although it is another one than the model's.
        special_tokens: special tokens that are written out in a prompt: "text" or "parse"; None: as in the model's data.
        threads: of the kernels; None: one per core that the process may use.

    Raises:
        ValueError: it is none of these, it is damaged, or something is asked for that does not exist yet.
    """
    if dtype not in (None, *PRECISIONS):
        raise ValueError(f"[load] dtype={dtype!r} is unknown. Give one of {', '.join(PRECISIONS)}.")
    if kv_dtype not in (None, "fp32", "bf16"):
        raise ValueError(f"[load] kv_dtype={kv_dtype!r} is unknown. Give fp32 or bf16.")
    if special_tokens not in (None, "text", "parse"):
        raise ValueError(f"[load] special_tokens={special_tokens!r} is unknown. Give text or parse.")
    binding = bind_once(threads)
    from cktrain.loaded_model import open_model

    return open_model(
        path,
        precision=PRECISIONS[dtype or "fp32"],
        threads=threads or binding.threads,
        tokenizer=None if tokenizer is None else str(tokenizer),
        any_tokenizer=any_tokenizer,
        special_tokens=special_tokens,  # type: ignore[arg-type]
        adapter=adapter,
        kv_dtype=kv_dtype,
        quantize=quantize,
        activations=activations,
    )


@overload
def generate(model: str | Path | Model, prompt: str = "", max_tokens: int = 100, **sampling: Any) -> str: ...
@overload
def generate(
    model: str | Path | Model, prompt: Sequence[str], max_tokens: int = 100, **sampling: Any
) -> list[str]: ...


def generate(
    model: str | Path | Model, prompt: str | Sequence[str] = "", max_tokens: int = 100, **sampling: Any
) -> str | list[str]:
    """The text that follows a prompt, or of several prompts each one's, without it.

    Args:
        model: what `load` returned, or a path that it opens.
        prompt: text to continue, or a list of texts; "": the start of a document.
        max_tokens: at most, of each.
        sampling: keywords of `Model.generate`: temperature, top_k, top_p, min_p, repetition_penalty, stop, seed. Each prompt
            begins with the seed, and so gives what it gives alone.

    Raises:
        ValueError: as `load` and `Model.generate`.
    """
    opened = load(model) if isinstance(model, str | Path) else model
    if isinstance(prompt, str):
        return opened.generate(prompt, max_tokens, **sampling)
    return opened.generate_all(prompt, max_tokens, **sampling)


def train(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, bar: bool = True
) -> TrainedRun:
    """Train as `cktrain train` does: the same configuration, folder, log lines and checkpoints.

    What stands in the folder is resumed, as `checkpoint.resume` says. In a process that a launcher has started beside
    others (mpirun, srun, cktrain launch) it is one rank of their run.

    Args:
        config: path of a YAML file (docs/configuration.md), or its content as nested mappings.
        overrides: values of keys, as `{"run.steps": 100, "optimizer.lr": 1e-3}`.
        bar: show a progress bar, on a terminal.

    Raises:
        ValueError: a key or the data is wrong; the message says which and what to do.
        RuntimeError: the run ended by an error; the message says what is saved.
    """
    from cktrain.config_file import load_config

    checked = load_config(config, overrides or {})
    process = rank_of_this_process()
    binding = bind_for(checked.launch, checked.parallel.tensor, process)
    from cktrain.session import train_here

    return train_here(checked, process, binding, bar)


def finetune(
    model: str | Path | Model | TrainedRun,
    data: str | Path,
    out: str | Path | None = None,
    *,
    full: bool = False,
    adapter: Mapping[str, Any] | None = None,
    epochs: float | None = None,
    chat: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    bar: bool = True,
) -> TrainedRun:
    """Fine-tune a model on chats or instructions, as `cktrain finetune` does (docs/finetune.md).

    Args:
        model: a Hugging Face folder, a GGUF file, a run or a checkpoint; or what `load`, `train` or this returned.
        data: a file of rows, a folder of such, or one that `cktrain data prepare` made.
        out: the run's folder; None: runs/MODEL-DATA, by their names.
        full: train all weights, without an adapter.
        adapter: keys of the adapter's block, as `{"r": 8, "target_modules": ["q_proj", "v_proj"]}`.
        epochs: passes over the data; None: 3 of an adapter, 2 of all weights.
        chat: how rows are prepared, as `{"sequence_length": 512, "validation_fraction": 0.1}`: fields of
            `cktrain.data.chat.prepare.ChatOptions`.
        overrides: values of keys of the configuration, as `{"optimizer.lr": 1e-4}`.
        resume: go on with the run that the folder holds, also for more epochs.
        overwrite: start afresh there, and set its checkpoints aside.
        bar: show progress bars, on a terminal.

    Raises:
        ValueError: a row, a key or a file is wrong, or the folder holds a run; the message says which and what to do.
        RuntimeError: the run ended by an error; the message says what is saved.
    """
    process = rank_of_this_process()
    if (process.size or 1) > 1:
        raise ValueError(
            f"[finetune] several ranks were started ({process.variables} say so), and it prepares as one. Start their "
            "script with cktrain.train and the finetune.yaml that this one wrote; if nobody started others, set "
            "CKTRAIN_SIZE=1."
        )
    if resume and overwrite:
        raise ValueError("[finetune] resume and overwrite are both given. Leave one of them out.")
    bind_once()
    from cktrain.config_file import load_config
    from cktrain.fine_tuning import FineTuning, owned_run, path_of, prepare, refuse_used
    from cktrain.fine_tuning_result import losses_in_words
    from cktrain.session import train_here

    source = path_of(model)
    folder = Path("runs") / f"{Path(source).stem}-{Path(data).stem}" if out is None else Path(out)
    with owned_run(folder) as lock:
        if not (resume or overwrite):
            refuse_used(folder)
        asked = FineTuning(source, data, folder, full, adapter, epochs, chat or {}, overrides or {})
        prepared = prepare(asked, lambda text: print(text, flush=True), bar, lock, goes_on=resume)
        print("\n".join(prepared.lines), flush=True)
        config = load_config(prepared.file, {"checkpoint.resume": "none"} if overwrite else {})
        binding = bind_for(config.launch, config.parallel.tensor, process)
        lock.hand_over()
        run = train_here(config, process, binding, bar)
    print("\n".join(losses_in_words(config)), flush=True)
    return run


def evaluate(
    model: str | Path | Model | TrainedRun,
    data: str | Path,
    *,
    compare: str | Path | None = None,
    metrics: Sequence[str] = (),
    answers: int = 50,
    max_tokens: int = 256,
    general: str | Path | None = None,
    rows: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate a model on held-out rows, as `cktrain evaluate` does (docs/evaluate.md).

    Args:
        model: a path that `load` opens, or what `load`, `train` or `finetune` returned.
        data: a file of rows, a folder of such, or one that `cktrain data prepare` made.
        compare: path of another model for the same rows; "base": what a run or an adapter started from.
        metrics: of answers: "exact_match", "rouge_l".
        answers: rows that are answered.
        max_tokens: of an answer.
        general: file of a text in general, for bits per byte.
        rows: how rows are read, as `{"split": "train", "skip_bad": True}`: fields of
            `cktrain.evaluation.rows.RowOptions`.

    Raises:
        ValueError: a row, a name or a file is wrong; the message says which and what to do.
    """
    bind_once()
    from cktrain.evaluation.evaluate import EvaluationOptions, evaluate_model
    from cktrain.evaluation.rows import RowOptions
    from cktrain.loaded_model import Model
    from cktrain.trained_run import TrainedRun

    def open_one(path: str | Path | None) -> Model:
        if path is not None:
            return load(path)
        if isinstance(model, Model):
            return model
        return model.load() if isinstance(model, TrainedRun) else load(model)

    options = EvaluationOptions(list(metrics), answers, max_tokens, general, RowOptions(**(rows or {})))
    return evaluate_model(open_one, compare, data, options)
