"""cktrain: train and fine-tune transformer language models on CPUs.

Nothing is imported here: the command line binds the process to its cores before numpy is loaded.
"""

__version__ = "0.1.0"
