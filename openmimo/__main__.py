"""`python -m openmimo` is `mimo`; torchrun starts it as `torchrun ... -m openmimo VERB`."""

import sys

from openmimo.cli import main

if __name__ == "__main__":
    sys.exit(main())
