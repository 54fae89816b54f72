from eval.published.cli import main

raise SystemExit(main())
