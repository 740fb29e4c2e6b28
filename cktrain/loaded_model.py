"""A model in memory, for a script or a notebook: logits, loss, gradients and text of one process.

Shapes: ids (T,) or (B, T), any integers below the vocabulary; labels beside them, of the same shape, as transformers takes
them; logits (T, V) or (B, T, V).

Weights are held frozen, without gradients, until `gradients` is asked for; they are then read again with room for them.
A shape that is asked for again and again
finds its arrays where they were; another one makes them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cktrain import cython_kernels
from cktrain.data.chat.chat_prompt import ChatPrompt
from cktrain.data.loader import IGNORE_INDEX
from cktrain.generation.batch import Batch, Place, side_by_side
from cktrain.generation.decoder import Decoder, generate, most_tokens
from cktrain.generation.sampler import Sampler
from cktrain.generation.text_generation import TextGeneration
from cktrain.hf.folder import save_folder
from cktrain.hf.hub import what_fetches_the_rest
from cktrain.hf.peft_folder import peft_adapter
from cktrain.hf.peft_targets import loras
from cktrain.hf.tensors import hf_tensors
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import Slot, SlotPlan, plan_slot
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import PRECISIONS, Numerics
from cktrain.saved_model import SavedModel, find_saved_model
from cktrain.side_files import SideFiles, SpecialTokens
from cktrain.text_stream import Codec, TextStream

FIRST_POSITIONS = 1024
"""Positions that a model is built for at first: tables of angles grow with them."""

BATCH = 6
"""Prompts that are continued side by side: the rows of the narrowest register tile of the kernels in use."""


def open_model(
    path: str | Path,
    *,
    precision: str = "fp32",
    threads: int = 1,
    tokenizer: str | None = None,
    any_tokenizer: bool = False,
    special_tokens: SpecialTokens | None = None,
    adapter: str | Path | None = None,
    kv_dtype: str | None = None,
    quantize: str | None = None,
    activations: str = "exact",
) -> Model:
    """As `cktrain.load`, in a process that is bound. Raises ValueError for what cannot be opened."""
    kernels = cython_kernels.load()
    if precision == "fp64" and kernels.isa != "reference":
        raise ValueError(
            f"[load] fp64 needs the reference kernels, and {kernels.isa} was chosen. Set CKTRAIN_ISA=reference."
        )
    if activations not in ("exact", "q8"):
        raise ValueError(f"[load] activations={activations!r} is unknown. Give exact or q8.")
    kernels.set_num_threads(threads)
    saved = find_saved_model(path)
    if adapter is not None:
        saved = saved.with_adapter(adapter)
    if quantize is not None:
        saved = saved.quantized(quantize)
    side = saved.side_files(tokenizer, any_tokenizer)
    numerics = Numerics(kernels, precision)
    numerics.rounds = activations == "q8"
    return Model(saved, numerics, side, special_tokens, kv_dtype)


class Model:
    """What `cktrain.load` returns: logits, loss, gradients and text of one process.

    ids are integers (T,) or (B, T), labels beside them of the same shape: the label at t is what the model should predict
    from the ids before t, so the ids themselves are labels, the first one of a row is never used, and -100 is ignored.
    Every row is a document of its own and of full length: there is no padding mask.
    """

    def __init__(
        self,
        saved: SavedModel,
        numerics: Numerics,
        side: SideFiles,
        special_tokens: SpecialTokens | None = None,
        kv_dtype: str | None = None,
    ) -> None:
        """Weights are read when they are first needed.

        `kv_dtype`: "fp32" or "bf16", in which keys and values are kept; None: what products are computed in.
        """
        self._saved = saved
        self._numerics = numerics
        self._side = side
        self._special_tokens = special_tokens
        self._kv_dtype = None if kv_dtype is None else np.dtype(PRECISIONS[kv_dtype][0])
        self._codec: Codec | None = None
        self._built: tuple[Transformer, ParamStore] | None = None
        self._positions = 0
        self._trainable = False
        self._slot: tuple[tuple[int, int, bool], Slot] | None = None

    def __repr__(self) -> str:
        config = self._saved.config
        return (
            f"<cktrain model {self.path}: {config.family}, {config.num_hidden_layers} layers of {config.hidden_size}, "
            f"{self._numerics.precision} on {self._numerics.kernels.isa}>"
        )

    @property
    def path(self) -> Path:
        """The Hugging Face folder or the checkpoint that it was read from."""
        return self._saved.path

    @property
    def side(self) -> SideFiles:
        """Its tokenizer's files, chat template and generation settings. ValueError where there is no tokenizer."""
        _ = self.codec
        return self._side

    @property
    def adapter_path(self) -> Path | None:
        """PEFT's folder that it was loaded with; None where there is none, and of a run that has its own adapter."""
        return self._saved.adapter_folder

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        assert self._saved.config.vocab_size is not None
        return self._saved.config.vocab_size

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model takes."""
        limit = self._saved.config.max_position_embeddings
        assert limit is not None
        return limit

    # ----------------------------------------------------------------------------------- numbers

    def logits(self, ids: npt.ArrayLike) -> npt.NDArray[np.floating]:
        """Unnormalised log-probabilities of the id that follows each: fp32 (fp64 in fp64), (B, T, V) for ids (B, T).

        Raises ValueError for ids beyond the vocabulary, another number of dimensions, or too many positions.
        """
        rows, shape = self._read_ids(ids)
        model, _, slot = self._prepare(rows, train=False)
        slot.describe(None, None)
        assert model.head is not None
        with slot.recomputing():
            stream = model.hidden(rows, slot)
        return model.head.logits(stream).reshape(*shape, -1)

    def loss(self, ids: npt.ArrayLike, labels: npt.ArrayLike | None = None) -> float:
        """Mean cross-entropy in nats over the labels; None: the ids are the labels.

        Raises ValueError as `logits`, and where no label is left.
        """
        rows, shape = self._read_ids(ids)
        shifted = self._shifted(rows, shape, labels)
        model, _, slot = self._prepare(rows, train=False)
        slot.describe(None, None)
        with slot.recomputing():
            stream = model.hidden(rows, slot)
        total, count = model.loss(stream, shifted, slot, train=False)
        return total / count

    def log_probabilities(
        self, ids: npt.ArrayLike, labels: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.floating]:
        """Of each label its log-probability in nats after the ids before it: fp32 (fp64 in fp64), of the labels' shape.

        0 where there is none: of the first of a row, and of -100. None: the ids are the labels. Raises ValueError as `loss`.
        """
        rows, shape = self._read_ids(ids)
        shifted = self._shifted(rows, shape, labels)
        model, _, slot = self._prepare(rows, train=False)
        slot.describe(None, None)
        assert model.head is not None
        with slot.recomputing():
            stream = model.hidden(rows, slot)
        with slot.phase(model.head.role):
            logp, _ = model.head.score(stream, shifted.reshape(-1), slot)
        found = np.zeros(rows.shape, logp.dtype)
        found[:, 1:] = logp.reshape(rows.shape)[:, :-1]
        return found.reshape(shape)

    def gradients(
        self, ids: npt.ArrayLike, labels: npt.ArrayLike | None = None
    ) -> dict[str, npt.NDArray[np.floating]]:
        """Gradients of `loss` by every parameter: new arrays by Hugging Face's names and in its shapes, fp32.

        Those of an adapter have PEFT's names. A tied head has none of its own. Raises ValueError as `loss`.
        """
        rows, shape = self._read_ids(ids)
        shifted = self._shifted(rows, shape, labels)
        model, params, slot = self._prepare(rows, train=True)
        slot.describe(None, None)
        params.begin_sums()
        _, count = model.forward_loss(rows, shifted, slot)
        model.backward_loss(rows, slot)
        tensors = hf_tensors(self._saved.config, reversed(params.params))
        found: dict[str, npt.NDArray[np.floating]] = {}
        found |= {tensor.name: tensor.view(tensor.param.grad) / count for tensor in tensors}
        if self._saved.adapter is not None:
            for part in peft_adapter(self._saved.adapter, self._saved.config, model, None).tensors:
                if part.param.spec.adapter:  # what is trained whole beside it has its own name above
                    found[part.name] = part.view(part.param.grad) / count
        return found

    def save(self, folder: str | Path, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
        """Write a Hugging Face folder that transformers loads; an adapter is merged into its weights, before `quantize`.

        Raises ValueError where it is not empty or no Hugging Face class has this architecture, OSError where writing fails.
        """
        if self._saved.adapter is None:
            saved = self._saved
            if saved.config.quantize == "none":
                _, params = self._build(1, train=False)
            else:
                _, params = saved.quantized("none").load(self._numerics, 1)
        else:
            model, params = self._saved.quantized("none").load(Numerics(self._numerics.kernels, "fp32"), 1)
            for linear, lora in loras(model):
                lora.merge_into(linear.weight.data)
        save_folder(folder, self._saved.config, params, self._side, dtype)

    # -------------------------------------------------------------------------------------- text

    @property
    def codec(self) -> Codec:
        """Text to ids and back, as the model's own data was encoded. ValueError where there is no tokenizer."""
        if self._codec is None:
            if not self._side.has_tokenizer:
                rest = what_fetches_the_rest(self.path)
                more = f", or fetch what the hub's cache lacks: {rest}" if rest else "."
                raise ValueError(
                    f"[generate] {self.path} has no tokenizer.json, neither had the data it was trained on. "
                    f"Give its folder with --tokenizer (tokenizer= in Python){more}"
                )
            self._codec = Codec(self._side, self._special_tokens)
        return self._codec

    def encode(self, text: str) -> list[int]:
        """The text's ids, with what begins a document before them. ValueError where there is no tokenizer."""
        return self.codec.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The ids' text, without special tokens. ValueError where there is no tokenizer."""
        return self.codec.decode(ids)

    def generate(
        self,
        prompt: str = "",
        max_tokens: int = 100,
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> str:
        """The text that follows the prompt, without it.

        Args:
            prompt: text to continue; "": the start of a document.
            max_tokens: at most; fewer where the text or the model's positions end.
            temperature: 0: always the likeliest token.
            top_k: choose among so many of the likeliest tokens; 0: among all.
            top_p: choose among the fewest tokens of this probability.
            min_p: choose among the tokens that are at least so likely as this share of the likeliest one's probability.
            repetition_penalty: tokens that stand in prompt or text are made less likely by it; 1: they are not.
            stop: strings at which the text ends; they are not part of it.
            seed: the same seed gives the same text.

        Raises:
            ValueError: a number is out of range, the prompt is too long, or there is no tokenizer.
        """
        sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        return "".join(self.stream(self.codec.encode(prompt), max_tokens, sampler, stop))

    def generate_all(
        self,
        prompts: Sequence[str],
        max_tokens: int = 100,
        *,
        temperature: float = 0.8,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> list[str]:
        """The text that follows each prompt, as `generate` gives it for the prompt alone: several are written side by side.

        Args:
            prompts: texts to continue; "": the start of a document.
            max_tokens: at most, of each.
            temperature: this and the others as in `generate`.
            stop: strings at which a text ends.
            sampling: top_k, top_p, min_p, repetition_penalty, seed.

        Raises:
            ValueError: as `generate`.
        """
        ids = [self.codec.encode(prompt) for prompt in prompts]
        texts = self.stream_all(ids, max_tokens, lambda: Sampler(temperature, **sampling), stop)
        return [text for text, _ in texts]

    def stream(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampler: Sampler,
        stop: Sequence[str] = (),
        *,
        stop_ids: frozenset[int] = frozenset(),
        decoder: Decoder | None = None,
        place: Place | None = None,
    ) -> TextGeneration:
        """The text of the tokens that follow these ids, one piece per token, and at the end what is left of the last one.

        A piece may be empty, within a character. `stop_ids` end a text beside the model's own. A `decoder` of this model
        does not read again what it knows of the prompt; the text may have a `place` in a batch of it. Raises ValueError at
        once, as `generate`.
        """
        self.codec.check(prompt, self.vocab_size)
        positions = min(self.max_positions, len(prompt) + max(max_tokens, 1) - 1)
        decoder = decoder or self.decoder(positions)
        positions = min(positions, decoder.cache.capacity)
        ends = self.codec.stop_ids | stop_ids
        tokens = generate(
            decoder.model, prompt, max_tokens, sampler.choose, positions, ends, place or decoder
        )
        most = most_tokens(len(prompt), max_tokens, positions)
        return TextGeneration(tokens, most, max_tokens, TextStream(self.codec, prompt), stop)

    def stream_all(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        new_sampler: Callable[[], Sampler],
        stop: Sequence[str] = (),
        *,
        batch: int = BATCH,
    ) -> Iterator[tuple[str, TextGeneration]]:
        """(text, how it ended) of each prompt, in their order: `batch` of them are written at a time.

        Each is what `stream` gives for it alone, with a sampler of its own. Raises ValueError as `stream`.
        """
        for prompt in prompts:
            self.codec.check(prompt, self.vocab_size)
        if not prompts:
            return
        capacity = min(self.max_positions, max(map(len, prompts)) + max(max_tokens, 1) - 1)
        decoder = self.decoder(capacity, min(batch, len(prompts)))
        texts: dict[int, TextGeneration] = {}

        def begin(number: int, place: Place) -> Iterator[str]:
            texts[number] = self.stream(
                prompts[number], max_tokens, new_sampler(), stop, decoder=decoder, place=place
            )
            return iter(texts[number])

        done: dict[int, str] = {}
        following = 0
        for number, pieces in side_by_side(Batch(decoder), begin, len(prompts)):
            done[number] = "".join(pieces)
            while following in done:
                yield done.pop(following), texts.pop(following)
                following += 1

    def decoder(self, capacity: int, batch: int = 1) -> Decoder:
        """A reader of `batch` texts of up to so many tokens; what it has read of a single one is not read again."""
        model, _ = self._build(max(capacity, 1), train=False)
        return Decoder(model, capacity, batch, self._kv_dtype)

    def chat_prompt(self, chat_template: str | None = None) -> ChatPrompt:
        """The model's chat template with its tokenizer, or another one by its name or file. ValueError: there is none."""
        return ChatPrompt(self.side, chat_template, self._special_tokens or "text")

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 1024,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> str:
        """The answer to a conversation, as the model's chat template writes it.

        Args:
            messages: `[{"role": "user", "content": "Hi"}]` and so on; roles are the template's.
            max_tokens: at most; fewer where the answer or the model's positions end.
            tools: functions that the template tells the model of.
            chat_template: chatml, llama3, plain or a file, instead of the model's own.
            temperature: this and the others as in `generate`.

        Raises:
            ValueError: as `generate`, and where there is no template, or it refuses the messages.
        """
        sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        prompt = self.chat_prompt(chat_template)
        return "".join(
            self.stream(prompt.ids(messages, tools), max_tokens, sampler, stop, stop_ids=prompt.stop_ids)
        )

    # ------------------------------------------------------------------------------------- below

    def _read_ids(self, ids: npt.ArrayLike) -> tuple[npt.NDArray[np.int32], tuple[int, ...]]:
        """Ids as (B, T) int32, and the shape in which they were given."""
        given = np.asarray(ids)
        if given.ndim not in (1, 2) or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"[model] ids of shape {given.shape} and type {given.dtype}: give integers of shape (tokens,) or "
                "(sequences, tokens), at least one."
            )
        if given.min() < 0 or given.max() >= self.vocab_size:
            wrong = given[(given < 0) | (given >= self.vocab_size)][0]
            raise ValueError(
                f"[model] id {wrong} is not in the model's vocabulary of {self.vocab_size:,}. "
                "Use the tokenizer that it was trained with."
            )
        if given.shape[-1] > self.max_positions:
            raise ValueError(
                f"[model] {given.shape[-1]:,} tokens in a row, and the model has {self.max_positions:,} positions. "
                "Give shorter rows."
            )
        return np.ascontiguousarray(np.atleast_2d(given), np.int32), given.shape

    def _shifted(
        self, rows: npt.NDArray[np.int32], shape: tuple[int, ...], labels: npt.ArrayLike | None
    ) -> npt.NDArray[np.int32]:
        """Labels (B, T) int32 in the loader's sense: what follows each id."""
        given = rows.reshape(shape) if labels is None else np.asarray(labels)
        if given.shape != shape:
            raise ValueError(f"[model] labels {given.shape} beside ids {shape}: give one label per id.")
        valid = given[given != IGNORE_INDEX]
        if valid.size and (valid.min() < 0 or valid.max() >= self.vocab_size):
            raise ValueError(
                f"[model] labels {valid.min()} to {valid.max()}, and the model's vocabulary has {self.vocab_size:,} ids. "
                f"Give ids, or {IGNORE_INDEX} where there is nothing to predict."
            )
        shifted = np.full(rows.shape, IGNORE_INDEX, np.int32)
        shifted[:, :-1] = np.atleast_2d(given)[:, 1:]
        if not np.any(shifted != IGNORE_INDEX):
            raise ValueError(
                f"[model] no label is left: the first of a row is never predicted, and {IGNORE_INDEX} is ignored. "
                "Give two tokens or more, and a label."
            )
        return shifted

    def _prepare(self, rows: np.ndarray, train: bool) -> tuple[Transformer, ParamStore, Slot]:
        """The model for rows (B, T), and a slot of their shape."""
        model, params = self._build(rows.shape[1], train)
        key = rows.shape[0], rows.shape[1], train
        if self._slot is None or self._slot[0] != key:
            self._slot = None  # before there is another one
            self._slot = key, _plan(model, key).allocate()[0]
        return model, params, self._slot[1]

    def _build(self, positions: int, train: bool) -> tuple[Transformer, ParamStore]:
        """The model for sequences of so many tokens; with `train` its parameters have gradients."""
        if self._built is None or positions > self._positions or (train and not self._trainable):
            wanted = max(FIRST_POSITIONS, 1 << (positions - 1).bit_length(), self._positions)
            self._positions = min(wanted, self.max_positions)
            self._trainable |= train
            self._built = self._slot = None  # before there is another one
            self._built = self._saved.load(self._numerics, self._positions, self._trainable)
        return self._built


def _plan(model: Transformer, key: tuple[int, int, bool]) -> SlotPlan:
    """What a slot for rows (B, T, with a backward pass?) holds. Without one, one layer's arrays serve all layers."""
    batch_size, length, train = key
    if train:
        return model.plan(batch_size, length)
    ids = np.zeros((batch_size, length), np.int32)

    def run(slot: Slot) -> None:
        with slot.recomputing():
            stream = model.hidden(ids, slot)
        model.loss(stream, ids, slot, train=False)
        assert model.head is not None
        with slot.phase(model.head.role):
            model.head.score(stream, ids.reshape(-1), slot)

    with model.num.dry():
        return plan_slot(batch_size, length, run)
