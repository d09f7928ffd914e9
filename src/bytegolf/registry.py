"""Registries: implementations of one interface by the names that a configuration calls them.

A router or a mixer of your own lies in a file of your own::

    from bytegolf import register_router
    from bytegolf.model.routers.base import Router

    @register_router("mine")
    class MyRouter(Router): ...

``kind = "mine"`` in a configuration then means it, once that file has been imported: by your own program, or by
``plugins`` (below). A configuration or an artifact names the files that it needs in its list ``plugins``, but never
causes their import by itself: it may come from a stranger.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bytegolf.errors import BytegolfError

T = TypeVar("T", bound=type)

_PREFIX = "bytegolf_plugin_"
"""How the names of modules begin that are made of a file."""


class UnknownNameError(BytegolfError):
    """No implementation is registered by a name that a configuration uses."""


class Registry:
    """Classes by name; ``what`` they are, for messages.

    The package's own implementations are not imported before they are asked for: a run with a cosine router reads no
    other router's module. Each lies in a module of its own name, which registers it.
    """

    def __init__(self, what: str, built_in: Sequence[str]) -> None:
        self.what = what
        self.built_in = tuple(built_in)
        self._found: dict[str, type[Any]] = {}

    def names(self) -> tuple[str, ...]:
        """All names that are known, the package's own first."""
        return (*self.built_in, *(name for name in self._found if name not in self.built_in))

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a class by ``name``.

        A class may be registered again by the module that registered it before, as a notebook does when a cell runs
        twice. Raises BytegolfError if another one has the name.
        """

        def add(found: T) -> T:
            before = self._found.get(name)
            own = found.__module__.partition(".")[0] == __name__.partition(".")[0]  # also in a submission's one script
            if name in self.built_in and not own:
                raise BytegolfError(f"a {self.what} called {name!r} is the package's own: choose another name")
            if before and (before.__module__, before.__qualname__) != (
                found.__module__,
                found.__qualname__,
            ):
                raise BytegolfError(
                    f"a {self.what} called {name!r} is registered already, by {before.__module__}: choose another name"
                )
            self._found[name] = found
            return found

        return add

    def check(self, name: str, key: str = "kind") -> None:
        """Raise UnknownNameError unless ``name``, which a configuration's ``key`` has, is known."""
        if name not in self.names():
            raise UnknownNameError(
                f"{key} is {name!r}, and no {self.what} is registered by that name: choose one of "
                f"{', '.join(map(repr, self.names()))}, or name the file that registers it (--plugin FILE)"
            )

    def find(self, name: str, package: str | None) -> type[Any]:
        """The class called ``name``; the package's own ones lie in modules of ``package``."""
        self.check(name)
        if name not in self._found:
            importlib.import_module(f"{package}.{name}")
        return self._found[name]

    def source(self, name: str) -> str:
        """What to import for ``name``: a module's name, or a file's; empty for the package's own."""
        if name in self.built_in or name not in self._found:
            return ""
        module = self._found[name].__module__
        if module != "__main__" and not module.startswith(_PREFIX):
            return module
        return Path(getattr(sys.modules[module], "__file__", None) or module).name


ROUTERS = Registry("router", ("cosine", "topk", "whitespace", "stride", "random", "bpe", "entropy"))
MIXERS = Registry("mixer", ("attention", "mamba2"))
QUANTIZERS = Registry("quantizer", (*(f"int{bits}_row" for bits in range(8, 2, -1)), "fp16", "fp32"))

register_router = ROUTERS.register
register_mixer = MIXERS.register
register_quantizer = QUANTIZERS.register


def load_plugins(sources: Iterable[str | Path]) -> None:
    """Import modules that register implementations: names of importable modules, or paths of Python files.

    This runs the code in them, so only what the user names may come here, never what a configuration or an artifact
    names. A file is imported once per process. Raises BytegolfError for one that cannot be imported.
    """
    for source in map(str, sources):
        try:
            if source.endswith(".py"):
                _load_file(Path(source))
            else:
                importlib.import_module(source)
        except BytegolfError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise BytegolfError(f"the plugin {source} cannot be imported ({type(error).__name__}: {error})") from error


def _load_file(path: Path) -> None:
    # the name holds the whole path: two plugins router.py in different folders are different modules
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"{_PREFIX}{path.stem}_{digest}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BytegolfError(f"the plugin {path} does not exist: name a Python file or an importable module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
