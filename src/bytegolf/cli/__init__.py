"""The command line.

Its modules are imported when it runs, because every process that it spawns imports what its script names.
"""

from typing import NoReturn


def main() -> NoReturn:
    """The ``bytegolf`` command."""
    from bytegolf.cli.run import run

    run()
