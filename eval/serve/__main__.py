"""`python -m eval.serve`."""

from eval.serve.cli import main

main()
