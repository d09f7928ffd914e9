"""The verbs as people and programs meet them: help, JSON, pipes, text in and out."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import public_hnet
import pytest
import toy_submission
from commands import VERBS, Ran, TinyRun, cli, good, refused
from local_hub import Hub

from bytegolf.analyze.segment import STANDARD_TEXT
from bytegolf.infer.sample import as_text

GROUPS = {"study": ("run", "show", "list")}
COMMANDS = [
    (verb, *part) for verb in VERBS for part in ([(name,) for name in GROUPS[verb]] if verb in GROUPS else [()])
]
"""Each verb, or each of its own where it is a group, as words."""


def real(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """``python -m bytegolf`` as a process of its own."""
    return subprocess.run([sys.executable, "-m", "bytegolf", *map(str, arguments)], capture_output=True, **options)


# ---------------------------------------------------------------------------------------------- help


def test_help_names_every_verb_in_the_order_of_its_groups() -> None:
    shown = [line.split()[1] for line in good("--help").out.splitlines() if re.match("│ [a-z]", line)]
    assert tuple(shown) == VERBS
    assert good("--help").out == good().out


def test_help_comes_without_torch_and_at_once() -> None:
    """By what is imported, since seconds are the machine's: torch alone has 2,000 modules."""
    asked = [["--help"], ["--version"], *([*words, "--help"] for words in COMMANDS)]
    code = f"""
import contextlib, sys
from bytegolf.cli import main
for arguments in {asked}:
    sys.argv = ["bytegolf", *arguments]
    with contextlib.suppress(SystemExit):
        main()
    assert not {{"torch", "numpy", "sentencepiece", "pyarrow", "jinja2", "filelock"}} & sys.modules.keys(), arguments
assert len(sys.modules) < 450
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


SERVING = [("serve",)]
"""What answers requests, and ends without a result."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_a_verb_is_complete(words: tuple[str, ...]) -> None:
    verb, shown = " ".join(words), good(*words, "--help").out
    assert f"Example: bytegolf {verb}" in shown
    if words not in SERVING:
        assert "--json" in shown
        assert "JSON keys" in good(*words, "--help", "--json").out
    for line in shown.splitlines():
        assert len(line) <= 120
        if option := re.match(r"│ \*? +(--[a-z-]+|[A-Z]+)\b(?: [A-Z]+)? *(.*)│", line):
            assert option[2].strip(), f"{option[1]} of {verb} is not explained"


def test_examples_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example of the help names only options that there are: what it then lacks is a file."""
    monkeypatch.chdir(tmp_path)
    import shlex

    for words in COMMANDS:
        examples = re.findall(r"Example: bytegolf (.*)", good(*words, "--help").out)
        assert examples
        for example in examples:
            real = re.search("^fetch|data/default|corpus:", example)  # that would fetch or prepare a corpus
            if words in (("presets",), ("plan",)) or real:  # those two need nothing
                continue
            ran = cli(*shlex.split(example))
            assert ran.code == 2, example
            assert "--help" not in ran.err, example


# ---------------------------------------------------------------------------------------------- JSON


STUDY = """
name = "pair"
question = "Is one as good as the other?"
preset = "cpu-demo"
control = "one"
seeds = [1]
data = "{data}"
trainer = "false"
budget.steps = 1
variants.one = {{}}
variants.two.overrides.optim.muon_lr = 0.02
"""


def results(run: TinyRun, soft: TinyRun, published: Path, hub: Hub, out: Path) -> Iterator[tuple[str, Ran]]:
    """Each verb's answer to --json."""
    (out / "a.txt").write_text("One sentence, and another one.\n" * 40)
    fetched = ("--mirror", published, "--variant", "byte260", "--export", "--out", out / "fetched")
    yield "fetch", good("fetch", *fetched, "--json")
    yield "prepare", good("prepare", out / "a.txt", "--out", out / "data", "--cut", 200, "--val", "first:2", "--json")
    yield "plan", good("plan", run.folder / "config.toml", "--device", "here", "--steps", 1, "--json")
    yield "train", run.ran
    source = public_hnet.write(out / "public", public_hnet.public(), public_hnet.weights(public_hnet.public()))
    yield "import", good("import", source, "--out", out / "imported", "--json")
    yield "eval", good("eval", run.folder, "--json")
    yield "verify", good("verify", run.folder, "--json")
    yield "export", good("export", run.folder, "--out", out / "x.bgolf", "--json")
    yield "submit", good("submit", run.folder, "--out", out / "sub", "--author", "A", "--github-id", "a", "--json")
    toy = toy_submission.write(out / "toy", run.data)  # ours, which takes 40 times as long, is audited in test_audit
    yield "audit", cli("audit", toy, "--json")  # which proves nothing without data
    yield "push", good("push", run.folder, "me/tiny", "--licence", "mit", "--json")
    assert hub.repositories["me/tiny"]
    yield "segment", good("segment", run.folder, "--json")
    yield "probe", good("probe", soft.folder, "--limit", 1000, "--json")
    yield (
        "analyze",
        good("analyze", run.folder, "--history", "--stability", "--limit", 3000, "--data", run.data, "--json"),
    )
    yield "bench", good("bench", run.folder, "--data", run.data, "--noise", "--limit", 1000, "--json")
    yield "sample", good("sample", run.folder, "--bytes", 4, "--json")
    (out / "b.txt").write_text("One sentence.")
    yield "compress", good("compress", out / "b.txt", "-o", out / "b.bgz", "--json")
    yield "decompress", good("decompress", out / "b.bgz", "-o", out / "c.txt", "--json")
    yield "check", good("check", run.folder, "--json")
    (out / "s.toml").write_text(STUDY.format(data=run.data))
    yield "study run", cli("study", "run", out / "s.toml", "--json")  # whose runs fail
    yield "study show", good("study", "show", out / "s.toml", "--json")
    yield "study list", good("study", "list", out, "--json")
    yield "presets", good("presets", "--json")


def no_json(name: str) -> None:
    """Python writes NaN and Infinity, which other readers refuse."""
    pytest.fail(f"{name} is no JSON")


def keys(value: Any) -> Iterator[str]:
    """All keys in nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value[:1]:
            yield from keys(inner)


@pytest.mark.usefixtures("proved_quickly")
def test_json_is_one_documented_object(
    tiny_run: TinyRun, soft_run: TinyRun, published: Path, local_hub: Hub, tmp_path: Path
) -> None:
    seen = []
    for verb, ran in results(tiny_run, soft_run, published, local_hub, tmp_path):
        seen.append(verb)
        value = json.loads(ran.out, parse_constant=no_json)
        assert isinstance(value, dict)
        words = verb.split()
        help_text = " ".join(good(*words, "--help", "--json").out.split())
        if verb in ("train", "probe"):  # which refer to its keys
            help_text += " ".join(good("eval", "--help", "--json").out.split())
        if verb == "study run":
            help_text += " ".join(good("study", "show", "--help", "--json").out.split())
        for key in keys(value):
            if key != "byte260" and not re.search(r"_(total|train|val)$|, seed 1$|^\d+$", key):
                assert re.search(rf"\b{key}\b", help_text), f"{verb} --help does not tell of {key}"
    assert sorted(seen) == sorted(" ".join(words) for words in COMMANDS if words not in SERVING)


def test_the_keys_that_programs_rely_on(tiny_run: TinyRun) -> None:
    assert {"bpb", "val_loss", "tokens", "bytes", "seconds", "artifact_bytes", "params"} <= tiny_run.ran.json.keys()
    found = good("segment", tiny_run.folder, "--json").json
    assert {"boundaries", "chunks", "mean_chunk_bytes", "cv", "whitespace_agreement"} <= found.keys()


# ---------------------------------------------------------------------------------------------- segment


def test_segment_takes_text_from_everywhere(tiny_run: TinyRun, tmp_path: Path) -> None:
    content = "The people of the café\n"
    (tmp_path / "f.txt").write_text(content, encoding="utf-8")
    given = good("segment", tiny_run.folder, content, "--json").json
    assert given == good("segment", tiny_run.folder, "--file", tmp_path / "f.txt", "--json").json
    assert given == good("segment", tiny_run.folder, "--file", "-", "--json", stdin=content.encode()).json
    assert given["bytes"] == len(content.encode())
    default = good("segment", tiny_run.folder, "--json").json
    assert "".join(default["chunks"]) == tiny_run.ran.json["chunks_of"], "the beginning of the validation split"


def test_segment_gives_consistent_figures(tiny_run: TinyRun, two_level_run: TinyRun) -> None:
    for run, level in ((tiny_run, 0), (two_level_run, 0), (two_level_run, 1)):
        found = good("segment", run.folder, STANDARD_TEXT.decode(), "--level", level, "--json").json
        edges = [*found["boundaries"], found["bytes"]]
        lengths = [end - start for start, end in itertools.pairwise(edges)]
        assert found["boundaries"][0] == 0
        assert lengths == [len(chunk) for chunk in found["chunks"]]  # the text is ASCII
        assert found["mean_chunk_bytes"] == pytest.approx(sum(lengths) / len(lengths))
        assert found["level"] == level
    outer, inner = (
        set(good("segment", two_level_run.folder, "--level", level, "--json").json["boundaries"]) for level in (0, 1)
    )
    assert inner <= outer, "an inner chunk is made of outer ones"


def test_segment_shows_brackets_in_a_pipe(tiny_run: TinyRun) -> None:
    ran = good("segment", tiny_run.folder, "a [red]b[/red]\tc", "--json")
    shown = ran.err.splitlines()[0]
    assert "\x1b" not in ran.err
    assert shown.startswith("[a")
    chunks = re.findall(r"\[((?:\\.|[^\]\\])*)\]", shown)
    assert [chunk.replace("\\[", "[").replace("\\]", "]").replace("\\t", "\t") for chunk in chunks] == ran.json[
        "chunks"
    ]


def test_segment_reads_texts_longer_than_a_window_and_any_bytes(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(256)) * 3)
    assert good("segment", tiny_run.folder, "--file", tmp_path / "f", "--json").json["bytes"] == 768


def test_prepare_reads_stdin_and_folders(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"Text {name}.", encoding="utf-8")
    found = good("prepare", tmp_path, "--out", tmp_path / "1", "--val", "first:1", "--json").json["datasets"]["byte260"]
    assert (found["docs_train"], found["docs_val"], found["tokens_val"]) == (2, 1, 1 + len("Text a."))
    lines = b'{"body": "one"}\n{"body": "two"}\n'
    options = ("--field", "body", "--val", "first:1", "--json")
    found = good("prepare", "-.jsonl", "--out", tmp_path / "2", *options, stdin=lines).json["datasets"]["byte260"]
    assert (found["tokens_train"], found["tokens_val"]) == (4, 4)
    ran = good("prepare", "-", "--out", tmp_path / "3", "--cut", 10, "--val", "first:2", "--json", stdin=b"words " * 9)
    assert ran.json["split"] == "first:2"
    assert ran.json["datasets"]["byte260"]["bytes_train"] == 9 * 6 - ran.json["datasets"]["byte260"]["bytes_val"]


def test_a_flat_model_has_no_chunks(flat_run: TinyRun) -> None:
    assert "flat model: it has no router" in refused("segment", flat_run.folder)
    assert "chunks" not in good("eval", flat_run.folder).out


def test_chunk_starts_of_subwords_are_token_starts(subword_run: TinyRun) -> None:
    found = good("segment", subword_run.folder, "The people of the nation", "--json").json
    assert "".join(found["chunks"]) == "The people of the nation"


# ---------------------------------------------------------------------------------------------- sample


def test_sample_repeats_itself_by_seed(tiny_run: TinyRun) -> None:
    one, again, other = (sampled(tiny_run, "The", "--bytes", 24, "--seed", seed) for seed in (1, 1, 2))
    assert one["text"] == again["text"]
    assert one["text"] != other["text"]
    assert (one["prompt"], one["seed"]) == ("The", 1)


def test_samples_at_once_are_those_drawn_alone(tiny_run: TinyRun, subword_run: TinyRun) -> None:
    for run in (tiny_run, subword_run):
        ran = good("sample", run.folder, "The", "A long beginning", "--count", 2, "--bytes", 9, "--seed", 5, "--json")
        prompts = ["The", "The", "A long beginning", "A long beginning"]
        alone = [sampled(run, prompt, "--bytes", 9, "--seed", 5 + i) for i, prompt in enumerate(prompts)]
        assert ran.json["samples"] == alone
        assert ran.json["bytes"] == sum(one["bytes"] for one in alone)  # type: ignore[misc]
        for one in alone:
            assert f"--- seed {one['seed']}\n{one['prompt']}{one['text']}\n" in ran.err


def sampled(run: TinyRun, *arguments: str | int) -> dict[str, object]:
    """The only sample that the verb gives."""
    (one,) = good("sample", run.folder, *arguments, "--json").json["samples"]
    assert isinstance(one, dict)
    return one


def test_greedy_needs_no_seed(tiny_run: TinyRun) -> None:
    greedy = {
        sampled(tiny_run, "x", "--bytes", 12, *map(str, setting), "--seed", seed)["text"]
        for seed in (1, 2)
        for setting in (("--temperature", 0), ("--temperature", 1e-300), ("--top-p", 1e-9))
    }
    assert len(greedy) == 1


@pytest.mark.parametrize("size", [0, 1, 8])
def test_sample_writes_at_most_so_many_bytes(tiny_run: TinyRun, subword_run: TinyRun, size: int) -> None:
    for run, seed in ((tiny_run, 3), (subword_run, 3), (subword_run, 4), (subword_run, 5)):
        ran = good("sample", run.folder, "Fellow", "--bytes", size, "--seed", seed, "--json")
        assert ran.json["bytes"] == size, "ten steps do not teach to stop"
        assert (
            len(ran.json["samples"][0]["text"].encode(errors="replace")) <= 3 * size
        )  # what is no UTF-8 becomes three bytes
        assert ran.err.startswith("Fellow")


def test_prompts_of_all_kinds(tiny_run: TinyRun, subword_run: TinyRun) -> None:
    for run in (tiny_run, subword_run):
        for prompt in ("", "é漢🙂", "a\nb", " "):
            ran = good("sample", run.folder, "--bytes", 2, "--json", "--", prompt)
            assert ran.json["samples"][0]["prompt"] == prompt
            assert ran.err.startswith(prompt)
    hyphen = good("sample", tiny_run.folder, "--bytes", 1, "--json", "--", "-5 degrees").json
    assert hyphen["samples"][0]["prompt"] == "-5 degrees"


def test_streamed_characters_are_whole() -> None:
    data = "naïve 漢字 🙂!".encode()
    assert "".join(as_text(bytes([byte]) for byte in data)) == data.decode()
    for size in range(len(data)):
        assert "".join(as_text(iter([data[:size]]))) == data[:size].decode(errors="ignore")
    assert list(as_text(iter([b"caf", b"\xc3", b"\xa9", b"\xff", b"\xe2\x82"]))) == ["caf", "é", "\ufffd"]


# ---------------------------------------------------------------------------------------------- processes


def test_the_command_in_a_pipe(tiny_run: TinyRun) -> None:
    """A process of its own: UTF-8 in and out, bytes that no text has, a reader that leaves early."""
    ran = real("segment", tiny_run.folder, "--file", "-", "--json", input=b"caf\xc3\xa9 \xff")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["bytes"] == 7
    assert ran.stderr.startswith(b"[caf\xc3\xa9")


def test_a_reader_that_leaves_and_a_full_disk() -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run([sys.executable, "-m", "bytegolf", "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (0, b"")
    if Path("/dev/full").is_char_device():
        with Path("/dev/full").open("wb") as full:
            ran = subprocess.run([sys.executable, "-m", "bytegolf", "--help"], stdout=full, stderr=subprocess.PIPE)
        assert (ran.returncode, ran.stderr) == (2, b"bytegolf: cannot write to stdout: the disk is full\n")


def test_an_alphabet_that_the_terminal_lacks() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bytegolf", "--help"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert ran.returncode == 0, ran.stderr


def test_what_is_no_fault_of_the_user_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug must not look like bad input."""
    monkeypatch.setattr("bytegolf.cli.preset_list.presets", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli("presets")


def test_running_out_of_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you ...")

    monkeypatch.setattr("bytegolf.cli.preset_list.presets", fail)
    assert "out of memory" in refused("presets")
