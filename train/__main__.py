"""`python -m train`: the `avpoet-train` command, for launchers such as torchrun."""

from train.cli import main

raise SystemExit(main())
