"""`python -m qkvbench.native` builds the library for this machine, or says why it cannot."""

from qkvbench.native.build import main

if __name__ == "__main__":
    main()
