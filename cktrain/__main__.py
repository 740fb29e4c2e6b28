"""`python -m cktrain` is the command `cktrain`."""

import sys

from cktrain.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
