from optim.bench.cli import main

raise SystemExit(main())
