"""`python -m cascade`: the `cascade` command, for torchrun and for checkouts that are not installed."""

from cascade.cli.main import program

if __name__ == "__main__":
    program()
