"""``python -m spatile`` is the command ``spatile``."""

from __future__ import annotations

import sys

from spatile.cli import main

if __name__ == "__main__":
    sys.exit(main())
