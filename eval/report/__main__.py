from eval.report.cli import main

raise SystemExit(main())
