"""The tables of a bench record, by the name that the command has always had."""

from optim.bench.tables import main

if __name__ == "__main__":
    raise SystemExit(main())
