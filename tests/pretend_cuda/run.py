"""Run the tests marked gpu on a pretended device: ``python tests/pretend_cuda/run.py [pytest's arguments]``.

By default: ``tests/gpu``, and the tests of the pretending itself beside this file (``suite_*.py``). Exit code 5, with
one line that says why, where a device cannot be pretended; otherwise pytest's.

It replaces no GPU: nothing here is fast, asynchronous or out of memory, no kernel is compiled, and there is one device.
Tests marked ``hardware`` need a real one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from pretend_cuda import build  # noqa: E402  (no torch in there)


def cache() -> Path:
    """Where the library is kept."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "bytegolf" / "pretend_cuda"


def main(arguments: list[str]) -> int:
    """Pretend, and run pytest."""
    try:
        try:
            library = build.build(cache())
        except OSError:  # a home that cannot be written to
            library = build.build(Path(tempfile.mkdtemp()))
        build.load(library)
    except build.NotHereError as error:
        print(f"no device can be pretended here: {error}")
        return 5
    import pytest

    from pretend_cuda import tensors

    class Plugin:
        """What has to be done once the tests, and with them the package, are imported."""

        @staticmethod
        def pytest_collection_finish() -> None:
            """FlexAttention compiles itself for a GPU: what checks its arguments stands in. Shapes are checked by the
            other tests."""
            import jaxtyping

            from bytegolf.ops import flex_attention
            from pretend_cuda import flex

            flex_attention._compiled = lambda function: flex.flex_attention  # type: ignore[assignment]
            jaxtyping.config.update("jaxtyping_disable", True)

    chosen = [each for each in arguments if not each.startswith("-") and Path(each.partition("::")[0]).exists()]
    places = [] if chosen else [str(HERE.parent / "gpu"), *map(str, sorted(HERE.glob("suite_*.py")))]
    quiet = ["-p", "no:cacheprovider", "-p", "no:xdist"]
    with tensors.pretended():
        return int(pytest.main([*quiet, *arguments, *places], plugins=[Plugin()]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
