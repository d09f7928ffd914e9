"""The command line.

Its modules are imported when it runs, because every process that it spawns imports what its script names.
"""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """The ``bytegolf`` command; Ctrl-C ends it with a word also while its modules are imported."""
    try:
        from bytegolf.cli.run import run

        run()
    except KeyboardInterrupt:  # `run` answers those that come while a verb works
        sys.stderr.write("interrupted\n")
        sys.exit(130)
