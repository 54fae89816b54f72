"""Command lines with 2 for an answer: runs cannot be compared. So a wrong command line is 64."""

import argparse
import os
import sys
from typing import NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, but for the exit status of a wrong command line."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message; exit with `os.EX_USAGE`."""
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: error: {message}\n")
