"""`python -m medyate_planner` is `medyate`."""

import sys

from medyate_planner.cli import entry

if __name__ == "__main__":
    sys.exit(entry())
