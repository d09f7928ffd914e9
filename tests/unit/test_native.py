"""How the native library is found, built and done without."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch
from conftest import ModelMaker

from bytegolf.ops import native
from bytegolf.ops.rms_norm import rms_norm

TINY = b'#include "common.h"\nextern "C" void answer(i64, i64* out) { *out = 42; }\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache and a library of one tiny kernel, so that builds take little time."""
    if reason := native.why_not():
        pytest.skip(reason)
    header = native._sources()["common.h"]
    monkeypatch.setattr(native, "_sources", lambda: {"common.h": header, "tiny.cpp": TINY})
    monkeypatch.setenv("BYTEGOLF_CACHE", str(tmp_path))
    forget()
    yield tmp_path / "native"
    forget()


def forget() -> None:
    """As a new process would begin."""
    native._built.cache_clear()
    native._library.cache_clear()


def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The compiler's command lines from now on."""
    ran: list[list[str]] = []
    inner = native._run

    def run(command: list[str]) -> None:
        ran.append(command)
        inner(command)

    monkeypatch.setattr(native, "_run", run)
    return ran


def answer() -> int:
    out = torch.zeros(1, dtype=torch.long)
    native.call("answer", torch.zeros(1), out)
    return int(out)


def test_the_library_is_built_once(cache: Path) -> None:
    assert answer() == 42
    (built,) = cache.iterdir()
    before = built.stat().st_mtime_ns
    forget()
    assert answer() == 42
    (again,) = cache.iterdir()
    assert (again, again.stat().st_mtime_ns) == (built, before)


def test_a_changed_source_is_built_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer() == 42
    sources = native._sources()
    monkeypatch.setattr(native, "_sources", lambda: {**sources, "tiny.cpp": TINY.replace(b"42", b"43")})
    forget()
    assert answer() == 43
    assert len(list(cache.iterdir())) == 2


def test_what_is_unchanged_is_not_compiled_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where comments alone are other, as in a submission's script; an object that is gone is made again."""
    ran = commands(monkeypatch)
    other = b'extern "C" void other() {}\n'
    sources = {**native._sources(), "other.cpp": other}
    monkeypatch.setattr(native, "_sources", lambda: sources)
    assert answer() == 42
    sources.update({"other.cpp": b"  // new\n" + other, "tiny.cpp": TINY.replace(b"42", b"43")})
    for _ in range(2):
        ran.clear()
        forget()
        assert answer() == 43
        assert [Path(command[-3]).name for command in ran if "-c" in command] == ["tiny.cpp"]
        for path in [*cache.glob("*.so"), *(cache.parent / "objects").glob("tiny*.o")]:
            path.rename(path.with_name("gone"))


def test_threads_that_ask_at_once_compile_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = commands(monkeypatch)
    with ThreadPool(4) as pool:
        assert pool.map(lambda number: native.why_not(), range(4)) == [None] * 4
    assert len(ran) == 2, "one source, and the library"


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_damaged_library_is_built_anew(cache: Path, keep: float) -> None:
    """Loading it could end the process, so it must not come to that."""
    assert native.why_not() is None
    (built,) = cache.iterdir()
    forget()
    whole = built.read_bytes()
    built.unlink()  # a new file: the process has the old one mapped
    built.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    assert native.why_not() is None
    assert answer() == 42
    assert built.read_bytes() == whole


@pytest.mark.parametrize(
    ("source", "compiler", "words"),
    [
        (TINY, "no-such-compiler", "no C++ compiler was found"),
        (b"int f() { return nonsense; }\n", None, "nonsense"),
        (TINY, "false", "false failed"),
    ],
)
def test_why_not_is_one_sentence(
    source: bytes, compiler: str | None, words: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_sources", lambda: {"tiny.cpp": source})
    if compiler:
        monkeypatch.setenv("CXX", compiler)
    forget()
    reason = native.why_not()
    assert reason is not None
    assert words in reason
    assert "\n" not in reason
    assert "plain PyTorch path" in reason
    assert not native.usable(torch.zeros(1))


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("in the way")
    forget()
    assert "cannot be built or loaded" in (native.why_not() or "")


def test_a_compiler_with_arguments(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ -DNOTHING")
    forget()
    assert answer() == 42
    assert cache.exists()


def test_the_users_arguments_count_where_ours_say_otherwise(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = b'extern "C" void answer(long long, long long* out) {\n#ifdef __OPTIMIZE__\n*out = 1;\n#endif\n}\n'
    monkeypatch.setattr(native, "_sources", lambda: {"tiny.cpp": source})
    assert answer() == 1
    monkeypatch.setenv("CXX", "g++ -O0")
    forget()
    assert answer() == 0


def test_other_arguments_make_another_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer() == 42
    monkeypatch.setenv("CXX", "g++ -fno-tree-vectorize")
    forget()
    assert answer() == 42
    assert len(list(cache.iterdir())) == 2


def test_a_model_runs_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, make_model: ModelMaker) -> None:
    model, ids = make_model("one-level"), torch.randint(0, 260, (1, 20))
    with native.disabled(), torch.no_grad():
        wanted = model(ids).logits
    monkeypatch.setenv("CXX", "no-such-compiler")
    forget()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, wanted)
    assert not cache.exists()


def test_switched_off() -> None:
    with native.disabled():
        assert "BYTEGOLF_NATIVE=0" in (native.why_not() or "")
        assert not native.usable(torch.zeros(1))


def test_not_for_other_dtypes_or_devices() -> None:
    for x in (torch.zeros(2, 3).half(), torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, device="meta")):
        assert not native.usable(x)
    assert not native.usable(torch.zeros(1), torch.zeros(1).double())
    assert rms_norm(torch.ones(2, 3).half()).dtype == torch.float16
