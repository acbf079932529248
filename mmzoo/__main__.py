"""`python -m mmzoo` is `mmzoo`."""

from __future__ import annotations

import sys

from mmzoo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
