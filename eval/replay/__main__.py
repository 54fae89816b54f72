from eval.replay.cli import main

raise SystemExit(main())
