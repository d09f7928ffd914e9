"""``python -m bytegolf``: the same as the ``bytegolf`` command."""

from bytegolf.cli import main

if __name__ == "__main__":
    main()
