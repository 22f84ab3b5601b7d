"""`python -m loadtest`."""

import sys

from loadtest.cli import main

if __name__ == "__main__":  # worker processes import this module too
    sys.exit(main(sys.argv[1:]))
