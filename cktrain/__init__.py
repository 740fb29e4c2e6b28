"""cktrain: train and fine-tune transformer language models on CPUs.

    import cktrain as ck

    model = ck.load("path/to/folder-or-run")
    print(model.generate("def ", max_tokens=50))
    run = ck.train("demo.yaml", {"run.steps": 100})
    run = ck.finetune("path/to/folder", "chats.jsonl", epochs=3)

Nothing is imported here but what is asked for: the first of these binds the process to its cores, before numpy is loaded
where that is still possible (docs/python.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cktrain.api import bind, evaluate, finetune, generate, load, train
    from cktrain.loaded_model import Model
    from cktrain.trained_run import TrainedRun

__version__ = "0.2.0"

__all__ = ["Model", "TrainedRun", "__version__", "bind", "evaluate", "finetune", "generate", "load", "train"]

_WHERE = {
    "bind": "cktrain.api",
    "evaluate": "cktrain.api",
    "finetune": "cktrain.api",
    "generate": "cktrain.api",
    "load": "cktrain.api",
    "train": "cktrain.api",
    "Model": "cktrain.loaded_model",
    "TrainedRun": "cktrain.trained_run",
}


def __getattr__(name: str) -> Any:
    """PEP 562: import what is asked for when it is asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module 'cktrain' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
