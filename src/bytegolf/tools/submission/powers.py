"""What code can do that reading its text does not show: run other code, load what was pickled or compiled, start
programs, or reach Python's own insides under another name.

A search for what is forbidden never ends, so this one goes the other way round: a module that is not known to be
harmless, an attribute by which anything can be reached, a module that is handed on as a value are obstacles, each with
its line. They accuse nobody: what they say is that reading is not enough here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from bytegolf.tools.submission.constants import Bindings

RUNS = frozenset({"exec", "eval", "compile"})

HARMLESS = frozenset(
    re.findall(
        r"\w+",
        """
    __future__ abc argparse array ast asyncio atexit base64 binascii bisect builtins bz2 cProfile calendar cmath codecs
    collections colorsys concurrent configparser contextlib contextvars copy csv ctypes dataclasses datetime decimal
    difflib enum errno faulthandler fcntl filecmp fnmatch fractions functools gc getopt getpass glob graphlib gzip
    hashlib heapq hmac html http importlib inspect io itertools json keyword linecache locale logging lzma marshal math
    mmap multiprocessing numbers operator os pathlib pickle platform pprint profile pstats queue quopri random re
    resource runpy sched secrets select selectors shlex shutil signal socket stat statistics string struct subprocess
    sys sysconfig tarfile tempfile textwrap threading time timeit token tokenize tomllib traceback tracemalloc types
    typing unicodedata urllib uuid warnings weakref zipfile zlib zoneinfo

    apex bitsandbytes brotli bytegolf causal_conv1d constriction einops fla flash_attn flash_attn_2_cuda flash_attn_3
    flash_attn_interface gram_newton_schulz jaxtyping liger_kernel lz4 mamba_ssm matplotlib numpy orjson psutil pynvml
    python_minifier rich safetensors scipy sentencepiece tokenizers tomli tomli_w torch torchao tqdm
    transformer_engine triton typing_extensions xformers yaml zstandard zstd
    """,
    )
)
"""Modules that do what their names say, but for ``_ONLY`` and ``_NOT``. (Imports of bytegolf break a rule anyway.)"""

_ONLY: dict[str, re.Pattern[str]] = {
    module: re.compile(rf"({names})(\..*)?")
    for module, names in {
        "runpy": "run_path|run_module",
        "importlib": "import_module|__import__|metadata|resources|util|invalidate_caches",
        "importlib.util": "find_spec|spec_from_file_location|module_from_spec",
        "pickle": r"dumps?|Pickler|\w+_PROTOCOL|\w+Error",
        "marshal": "dumps?",
        "ctypes": "c_[a-z_0-9]+|byref|sizeof|POINTER|pointer|Structure|Union|Array|addressof|memmove|memset|string_at",
        "timeit": "default_timer",
        "cProfile": "Profile",
        "profile": "Profile",
        "builtins": "print|open|len|range|int|float|str|bytes|list|dict|set|tuple|sum|min|max|abs|zip|map|sorted",
        "yaml": "safe_load|safe_load_all|safe_dump|dump|YAMLError",
        "logging": "(?!handlers|config).*",
        "types": "(?!FunctionType|LambdaType|CodeType).*",
        "gc": "(?!get_).*",
        "inspect": "(?!currentframe|stack|trace|get(inner|outer)frames|getclosurevars).*",
        "sys": r"(?!set(trace|profile)|_getframe|_current_frames|meta_path|path_|modules|monitoring|addaudithook).*",
        "asyncio": "run|gather|sleep|wait|wait_for|Queue|Lock|Event|Semaphore|Task|create_task|get_event_loop|"
        "to_thread|new_event_loop|TaskGroup|TimeoutError",
        "http": "HTTPStatus",
        "socket": "gethostname|getfqdn",
        "urllib": "parse|error",
        "multiprocessing": "(?!connection|managers|Manager|reduction|shared_memory).*",
    }.items()
}
"""Of these modules, these names alone."""

_NOT = re.compile(
    r"torch\.(hub|package|jit\.load|export\.load|ops\.load_library|classes\.load_library|utils\.model_zoo|"
    r"utils\.cpp_extension|distributed\.(rpc|checkpoint)|serialization|_C\._\w*import\w*)(\..*)?|"
    r"numpy\.(f2py|ctypeslib|distutils|DataSource|lib\.npyio|lib\._datasource|testing)(\..*)?"
)
"""Names that load code or weights, or use a network, in modules that are harmless otherwise."""

NATIVE_MODULES = frozenset({"os", "sys", "subprocess", "builtins", "importlib", "ctypes", "pickle", "marshal", "runpy"})
_INSIDES = frozenset({"__self__", "__globals__", "__builtins__", "__code__", "__subclasses__", "__bases__", "__base__",
                      "__mro__", "mro", "__loader__", "__spec__", "__closure__", "__func__", "__reduce__",
                      "__reduce_ex__", "__getattribute__", "__import__", "f_globals", "f_locals", "f_builtins",
                      "f_back", "gi_frame", "cr_frame", "ag_frame", "tb_frame", "co_code"})  # fmt: skip
"""Attributes by which Python's insides are reached from any object."""

_RISKY = frozenset({"exec", "system", "popen", "load_module", "exec_module", "get_code", "runsource", "runcode",
                    "pythonapi", "load_library", "import_module", "urlopen", "urlretrieve", "open_connection",
                    "create_connection", "create_subprocess_exec", "create_subprocess_shell", "load_pickle",
                    "find_class", "cpp_extension", "model_zoo"})  # fmt: skip
"""Attributes that say what they do, of an object that is not known."""

_STARS = frozenset({"math", "typing", "ctypes", "collections", "itertools", "functools"})
_LOOKS = frozenset({"items", "keys", "values"})

Real = Callable[[ast.AST], str]
"""The full name of what an expression stands for: ``torch.hub.load``; empty where that is not seen."""
Constant = Callable[[ast.expr], object]
"""An expression's value; None where that is not seen."""


def obstacles(
    nodes: list[ast.AST], names: Bindings, real: Real, constant: Constant, here: Callable[[str], bool]
) -> Iterator[tuple[ast.AST, str]]:
    """Every place of a source that could do more than its text shows, and why; ``here`` knows the folder's modules."""
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((node, why) for why in _imported(node, here))
        elif isinstance(node, ast.Attribute):
            if not isinstance(names.parents.get(id(node)), ast.Attribute):
                yield from ((node, why) for why in _attribute(node, names, real))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield from ((node, why) for why in _name(node, names, real))
        elif isinstance(node, ast.Call):
            yield from ((node, why) for why in _called(node, names, real, constant))
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            base = ast.unparse(node.value)
            if re.search(r"\b(globals|locals|vars)\(|__dict__|\bmodules\b", base):
                yield node, f"{base[:60]} is written to, by which any name may change"


def allowed(name: str) -> bool:
    """Whether a full name of a library, ``torch.nn.Linear``, is known to be harmless."""
    if _NOT.fullmatch(name):
        return False
    parts = name.split(".")
    for number in range(1, len(parts)):
        only = _ONLY.get(".".join(parts[:number]))
        if only is not None and not only.fullmatch(".".join(parts[number:])):
            return False
    return True


def listed(module: str) -> bool:
    """Whether the names of ``module`` that are harmless are listed one by one."""
    return module in _ONLY


def unknown_module(name: str, here: Callable[[str], bool]) -> str:
    """Why the module ``name`` is an obstacle; empty if it is none."""
    first = name.partition(".")[0]
    if not here(first) and first not in HARMLESS:
        return f"what the module {first} does is not known here"
    return "" if here(first) or allowed(name) else f"{name} can run, load or fetch what is not read"


def _imported(node: ast.Import | ast.ImportFrom, here: Callable[[str], bool]) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        if node.level or not node.module:
            return
        if why := unknown_module(node.module, here):
            yield why
            return
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            if alias.name == "*":
                if not here(node.module.partition(".")[0]) and node.module not in _STARS:
                    yield f"all of {node.module} is imported, whatever that is"
            elif not here(node.module.partition(".")[0]) and not allowed(name):
                yield f"{name} can run, load or fetch what is not read"
        return
    for alias in node.names:
        if why := unknown_module(alias.name, here):
            yield why


def _attribute(node: ast.Attribute, names: Bindings, real: Real) -> Iterator[str]:
    """An attribute of a library, or of anything."""
    chain: list[str] = []
    part: ast.expr = node
    while isinstance(part, ast.Attribute):
        chain.append(part.attr)
        part = part.value
    for attribute in chain:
        if attribute in _INSIDES:
            yield f".{attribute} reaches Python's insides"
            return
    name = real(node)
    known = bool(name) and (not isinstance(part, ast.Name) or part.id in names.library or real(part) != part.id)
    if known:
        parent = names.parents.get(id(node))
        looked_into = name.removeprefix("builtins.") in RUNS and isinstance(parent, ast.Call) and parent.func is node
        if not allowed(name) and not looked_into and name not in ("builtins.__import__", "importlib.__import__"):
            yield f"{name} can run, load or fetch what is not read"
        elif "__dict__" in chain and name.partition(".")[0] in HARMLESS:
            yield f"{name} holds all of a module by its names"
    if (not known or name.partition(".")[0] not in HARMLESS) and set(chain) & _RISKY:
        yield f".{(set(chain) & _RISKY).pop()} of an object that is not known"


def _name(node: ast.Name, names: Bindings, real: Real) -> Iterator[str]:
    """A name that is used as a value."""
    if node.id in ("__builtins__", "__loader__", "__spec__"):
        yield f"{node.id} reaches Python's insides"
        return
    parent = names.parents.get(id(node))
    if node.id in names.modules and node.id in names.library:
        kept = isinstance(parent, ast.Call) and parent.func is not node and getattr(parent.func, "id", "") in (
            "getattr", "hasattr", "bool", "print")  # fmt: skip
        tested = isinstance(parent, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.If, ast.IfExp, ast.Assert))
        if not isinstance(parent, ast.Attribute) and not kept and not tested and not names.own(node):
            yield f"the module {node.id} is passed on as a value"
        return
    called = isinstance(parent, ast.Call) and parent.func is node  # which the reader looks into
    if real(node).removeprefix("builtins.") in RUNS | {"__import__"}:
        if not called and not names.own(node):
            yield f"{node.id} is passed on as a value"
    elif node.id in ("globals", "locals") and not names.own(node):
        above = names.parents.get(id(parent)) if isinstance(parent, ast.Call) else None
        looks = isinstance(above, ast.Compare) or (isinstance(above, ast.Attribute) and above.attr in _LOOKS)
        if not looks:
            yield f"{node.id}() holds all names, by which any may be called or changed"


def _called(call: ast.Call, names: Bindings, real: Real, constant: Constant) -> Iterator[str]:
    """A call of what is harmless only with some arguments."""
    name = real(call.func)
    keywords = {one.arg: one.value for one in call.keywords}
    if name in ("getattr", "setattr", "delattr") and call.args:
        base, wanted = real(call.args[0]), constant(call.args[1]) if len(call.args) > 1 else None
        module = base in NATIVE_MODULES or (base in names.library.values() and base.partition(".")[0] in HARMLESS)
        parent = names.parents.get(id(call))
        used = isinstance(parent, ast.Attribute) or (isinstance(parent, ast.Call) and parent.func is call)
        if name != "getattr" and module:
            yield f"{name} changes the module {base}"
        elif isinstance(wanted, str):
            if wanted in _INSIDES | _RISKY | {"__dict__"} or (module and not allowed(f"{base}.{wanted}")):
                yield f"{wanted} is fetched by its name"
        elif base in NATIVE_MODULES or (module and used):
            yield f"what is fetched from {base} by a name is not seen"
    elif name == "torch.load":
        trusted = constant(keywords["weights_only"]) is True if "weights_only" in keywords else True
        if not trusted or None in keywords or "pickle_module" in keywords or len(call.args) > 2:
            yield "torch.load may run what is pickled"
    elif name == "numpy.load":
        pickled = keywords.get("allow_pickle", call.args[2] if len(call.args) > 2 else None)
        if None in keywords or (pickled is not None and constant(pickled) is not False):
            yield "numpy.load may run what is pickled"
    elif name in ("operator.attrgetter", "operator.methodcaller"):
        wanted = {str(constant(one)) for one in call.args[: 1 if name.endswith("caller") else None]}
        parts = {part for one in wanted for part in one.split(".")}
        if parts & (_INSIDES | _RISKY | RUNS | {"None", "__dict__"}):
            yield f"{name} fetches what is not seen"
