"""cktrain trains and fine-tunes transformer language models on CPUs."""

__version__ = "0.1.0"
