"""`python -m loadtest`."""

import os
import sys

# numpy's linear algebra would start threads that spin for work which never comes, and count as the client's CPU.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from loadtest.cli.main import main

if __name__ == "__main__":  # worker processes import this module too
    sys.exit(main(sys.argv[1:]))
