"""`python -m medyate_planner` is `medyate`."""

import sys

from medyate_planner.cli import main

if __name__ == "__main__":
    sys.exit(main())
