"""`python -m cascade`: the `cascade` command, for torchrun and for checkouts that are not installed."""

import sys

from cascade.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
