"""Keys of other trainers (transformers, axolotl, LLaMA-Factory, torchtune, mlx-lm, Megatron, nanoGPT), and ours.

A key is answered with the place where ours stands. Where `Config` has no such place yet, the answer says so, and what there
is instead; it becomes the other answer by itself when the key is added.
"""

from __future__ import annotations

from collections.abc import Collection

_ACCUMULATION = "or batch.global_batch_size, which is theirs x micro_batch_size x data ranks"
_EPOCHS = "instead of run.steps"
_PACKED = "bfd or none, of the rows of data.train"
_QUANTIZE = "as q8_0 or nf4, for a frozen base"
_SPLIT = "the share of the rows of data.train; of text `cktrain data prepare --validation-fraction`"
_TRACKER = "the name of a project; metrics.jsonl in run.dir has every number, too"

# Theirs: where ours stands, and what else is to be said of it.
_KEYS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("learning_rate", "max_lr", "peak_lr"), ("optimizer.lr", "")),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "beta1", "beta2"), ("optimizer.betas", "a list of both")),
    **dict.fromkeys(("adam_epsilon", "adam_eps", "epsilon"), ("optimizer.eps", "")),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "clip_grad", "gradient_clipping"), ("optimizer.clip_grad_norm", "")),
    **dict.fromkeys(("optim", "optimizer_type"), ("optimizer.name", "")),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "lr_decay_style"), ("schedule.name", "")),
    "warmup_iters": ("schedule.warmup_steps", "in optimizer steps"),
    "min_lr": ("schedule.min_lr_ratio", "the last rate over the peak"),
    **dict.fromkeys(("max_steps", "max_iters", "train_iters", "iters", "total_steps", "num_steps"), ("run.steps", "")),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epochs"), ("run.epochs", _EPOCHS)),
    **dict.fromkeys(("output_dir", "out_dir", "save_dir", "adapter_path"), ("run.dir", "")),
    **dict.fromkeys(("per_device_train_batch_size", "batch_size"), ("batch.micro_batch_size", "")),
    "train_batch_size": ("batch.global_batch_size", ""),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "grad_accum_steps"), ("batch.gradient_accumulation_steps", _ACCUMULATION)
    ),
    **dict.fromkeys(
        ("max_length", "max_seq_length", "max_seq_len", "cutoff_len", "sequence_len", "seq_len", "seq_length",
         "block_size", "context_length", "model_max_length"), ("data.sequence_length", ""),
    ),
    **dict.fromkeys(
        ("dataset", "datasets", "dataset_name", "train_file", "data_path"),
        ("data.path", "a folder that `cktrain data prepare` made; data.train for a file of chats"),
    ),
    **dict.fromkeys(("interleave_probs", "data_mix", "data_blend", "blend"), ("data.mixture", "a list of path and weight")),
    **dict.fromkeys(("val_set_size", "val_size", "validation_split", "test_size"), ("data.validation", _SPLIT)),
    **dict.fromkeys(("eval_steps", "eval_interval", "eval_every", "steps_per_eval"), ("data.validation.every", "")),
    "sample_packing": ("data.packing", _PACKED),
    **dict.fromkeys(
        ("train_on_inputs", "train_on_prompt", "completion_only_loss", "assistant_only_loss"),
        ("data.train_on", "assistant, completion or all, of the rows of data.train"),
    ),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype", "mixed_precision"), ("precision", "fp32, bf16 or auto")),
    **dict.fromkeys(
        ("gradient_checkpointing", "grad_checkpoint", "activation_checkpointing", "recompute"),
        ("memory.checkpointing", "none or block")
    ),
    **dict.fromkeys(("save_steps", "save_interval", "save_every", "checkpoint_interval"), ("checkpoint.every", "")),
    **dict.fromkeys(("save_total_limit", "keep_last"), ("checkpoint.keep", "")),
    **dict.fromkeys(("max_tokens", "train_tokens", "total_tokens"), ("run.tokens", _EPOCHS)),
    **dict.fromkeys(("max_hours", "exit_duration_in_mins", "train_time_limit"), ("run.max_time", "as 8h or 90min")),
    **dict.fromkeys(("enable_tensorboard", "use_tensorboard", "tensorboard_dir"), ("log.tensorboard", "true or false")),
    "load_best_model_at_end": ("checkpoint.save_best", "the best one stands in run.dir/best"),
    "resume_from_checkpoint": ("checkpoint.resume", ""),
    **dict.fromkeys(("logging_steps", "log_interval", "log_every", "steps_per_report"), ("log.every", "")),
    **dict.fromkeys(("report_to", "wandb_project", "use_wandb"), ("log.wandb", _TRACKER)),
    **dict.fromkeys(
        ("model_name_or_path", "model_name", "base_model", "pretrained_model_name_or_path", "init_from"),
        ("model.from_pretrained", "a folder, a GGUF file or an id of a Hugging Face Hub"),
    ),
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "quantization_bit", "quantization_config"), ("model.quantize", _QUANTIZE)
    ),
    **dict.fromkeys(("n_embd", "d_model", "dim"), ("model.hidden_size", "")),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers"), ("model.num_hidden_layers", "")),
    **dict.fromkeys(("n_head", "n_heads"), ("model.num_attention_heads", "")),
    **dict.fromkeys(("n_kv_heads", "num_query_groups"), ("model.num_key_value_heads", "")),
    "n_inner": ("model.intermediate_size", ""),
    **dict.fromkeys(("n_positions", "n_ctx"), ("model.max_position_embeddings", "")),
    **dict.fromkeys(
        ("lora", "lora_config", "peft_config", "lora_parameters", "fine_tune_type", "finetuning_type", "train_type"),
        ("adapter", "a block of r, lora_alpha and others; without it all weights are trained"),
    ),
    **dict.fromkeys(("val_batches", "eval_iters"), ("data.validation.batches", "")),
    **dict.fromkeys(("resume_adapter_file", "adapter_name_or_path"), ("adapter.from_pretrained", "")),
    **dict.fromkeys(("lora_rank", "lora_r", "rank"), ("adapter.r", "")),
    **{key: (f"adapter.{key}", "") for key in ("lora_alpha", "lora_dropout", "peft_type")},
    **dict.fromkeys(("lora_target", "lora_target_modules", "target_modules"), ("adapter.target_modules", "")),
    **dict.fromkeys(("tensor_parallel_size", "tensor_model_parallel_size", "tp_size"), ("parallel.tensor", "")),
    **dict.fromkeys(("pipeline_parallel_size", "pipeline_model_parallel_size", "pp_size"), ("parallel.pipeline", "")),
    **dict.fromkeys(("data_parallel_size", "dp_size"), ("parallel.data", "")),
    **dict.fromkeys(("zero_stage", "deepspeed", "fsdp"), ("parallel.zero", "")),
}  # fmt: skip


def translated(key: str, places: Collection[str]) -> str | None:
    """What to write instead of a key that people know from elsewhere; None: nobody knows it.

    `places` are the paths of all of our keys. A key of ours in a wrong block is told its own.
    """
    known = _KEYS.get(key.lower().replace("-", "_"))
    if known is None:
        ours = sorted(place for place in places if place.rpartition(".")[2] == key)
        return f"It belongs to another block: {' or '.join(ours)}" if ours else None
    place, note = known
    if not place:
        return f"It is no key of a run: {note}"
    if place in places:
        return f"Here it is {place}{f' ({note})' if note else ''}"
    return f"There is no {place} yet; {note}"
