"""`python -m qkvbench.native` builds the library, or says why it cannot."""

import sys

from qkvbench.native.build import BuildError, build

if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except BuildError as error:
        sys.exit(f"The native kernel is not built: {error}.")
