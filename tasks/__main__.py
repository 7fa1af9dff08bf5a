"""`python -m tasks` is the `avpoet` command."""

import sys

from tasks.cli import main

sys.exit(main())
