"""``python -m qkvbench`` is the command ``qkvbench``."""

import sys

from qkvbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
