"""Let `python -m benchmarks` do what `python benchmarks/run.py` does."""

from __future__ import annotations

import sys

from benchmarks.run import main

sys.exit(main())
