"""`python -m sidestep`."""

from __future__ import annotations

import sys

from sidestep.cli import main

sys.exit(main())
