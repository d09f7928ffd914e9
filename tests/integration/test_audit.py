"""An audit passes what keeps the rules, and finds each planted breach of one, by the rule's name."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from commands import TinyRun, cli, good, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_submissions import CODERS, DISHONEST, HONEST, IMPORTS, PACKINGS, PLAIN, UNSEEN, folder_of, packed
from test_submit import Submitted, submitted  # noqa: F401  (a fixture)
from toy_submission import SCRIPT, write

from bytegolf.tools.submission import experiments, trial
from bytegolf.tools.submission.audit import audit, is_ours
from bytegolf.tools.submission.papers import read_papers
from bytegolf.tools.submission.reading import check_text
from bytegolf.tools.submission.sources import Source, Sources
from bytegolf.tools.submission.unpack import read_sources
from bytegolf.tools.submission.verdict import EXITS, RULES, TEXTUAL, Whole


def outcomes(folder: Path, *arguments: object) -> dict[str, tuple[str, str]]:
    """What an audit says of each rule, with its first evidence."""
    ran = cli("audit", folder, *arguments, "--json")
    verdicts = {row["rule"]: (row["outcome"], row["evidence"][0]) for row in ran.json["verdicts"]}
    assert list(verdicts) == list(RULES)
    told = {outcome for outcome, _ in verdicts.values()}
    whole: Whole = "broken" if "broken" in told else "unproved" if "not proved" in told else "passed"
    assert ran.json["verdict"] == whole
    assert ran.code == EXITS[whole], ran.err
    assert ran.json["passed"] is (whole == "passed")
    return verdicts


@pytest.fixture(scope="module")
def data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The byte tokens of the tiny corpus, the validation split cut short."""
    folder = tmp_path_factory.mktemp("bytes")
    for split, most in (("train", 20_000), ("val", 1500)):
        whole = next(path for path in tiny_data.rglob(f"fineweb_{split}_*.bin") if "byte260" in str(path)).read_bytes()
        header = bytearray(whole[:1024])
        header[8:12] = most.to_bytes(4, "little")
        (folder / f"fineweb_{split}_000000.bin").write_bytes(bytes(header) + whole[1024 : 1024 + 2 * most])
    return folder


@pytest.fixture(scope="module")
def toy(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest submission of another kind than ours."""
    folder = tmp_path_factory.mktemp("toys") / "honest"
    (data / "byte260").mkdir()  # where the toy's writer looks for them
    for path in data.glob("*.bin"):
        (data / "byte260" / path.name).symlink_to(path)
    write(folder, data)
    shutil.rmtree(data / "byte260")
    return folder


def changed(toy: Path, home: Path, old: str, new: str) -> Path:
    """A copy of the honest submission whose script has ``new`` for ``old``."""
    assert SCRIPT.count(old) == 1
    folder = home / "cheat"
    shutil.copytree(toy, folder)
    (folder / "train_gpt.py").write_text(SCRIPT.replace(old, new))
    return folder


@pytest.mark.skipif("BYTEGOLF_SLOW_TESTS" not in os.environ, reason="half a minute: set BYTEGOLF_SLOW_TESTS=1")
def test_our_own_mixed_submission_passes(tiny_run: TinyRun, tmp_path: Path) -> None:
    """With contexts that learn from text to text, and a primer that they read first: 520 branches of runs."""
    changes = ("eval.mix=true", "eval.mix.megabytes=1", "export.primer=2000")
    who = ("--author", "Ada", "--github-id", "ada")
    good("submit", tiny_run.folder, *changes, "--out", tmp_path / "mixed", *who)
    found = outcomes(tmp_path / "mixed", "--data", tiny_run.data)
    assert {outcome for outcome, _ in found.values()} == {"shown"}, found


BRANCHING = """
import json, sys
from pathlib import Path
import numpy as np
from bytegolf.tools.submission import experiments

script, scratch = map(Path, sys.argv[1:])
watch = experiments.Watch(["/"], [str(scratch)])
sys.addaudithook(watch.hook)
runner = experiments.Runner(script, scratch, watch)
texts = np.tile(4 + np.arange(17) % 5, (6, 1))
texts[:, 9] = 4 + np.frombuffer(b"etsopl", np.uint8)
tables = runner.branches(texts, 300.0)
starts = len((scratch / "starts").read_text())
same = [bool((runner.text(text)[1] == table).all()) for text, table in zip(texts, tables)]
print(json.dumps({"starts": starts, "same": same, "different": len({table.tobytes() for table in tables})}))
"""
"""Scores six texts in branches of one run, and each in a run of its own."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="branches are forks")
def test_a_run_branches_where_it_opens_the_text(toy: Path, tmp_path: Path) -> None:
    counted = SCRIPT.replace(
        "    given = parser", "    (HERE / 's' / 'starts').open('a').write('1')\n    given = parser"
    )
    threads = counted.replace("    given = parser", f"{THREAD}\n    given = parser")
    said = {}
    for name, script in {"alone": counted, "with a thread": threads}.items():
        shutil.copytree(toy, tmp_path / name)
        (tmp_path / name / "s").mkdir()
        path = tmp_path / name / "train_gpt.py"
        path.write_text(script)
        command = [sys.executable, "-c", BRANCHING, str(path), str(tmp_path / name / "s")]
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert ran.returncode == 0, ran.stderr
        said[name] = json.loads(ran.stdout)
    assert said["alone"] == {"starts": 1, "same": [True] * 6, "different": 6}
    assert said["with a thread"] == {"starts": 1, "same": [], "different": 0}, "whose work a fork would wait for"


THREAD = "    import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start()"


def test_our_own_script_is_known_where_nothing_else_is_there(submitted: Submitted, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "ours"
    shutil.copytree(submitted.path, folder)
    assert is_ours(read_papers(folder))
    (folder / "filelock.py").write_text("import socket\n")
    assert not is_ours(read_papers(folder)), "its script would import it"
    (folder / "filelock.py").unlink()
    with (folder / "train_gpt.py").open("a") as script:
        script.write("import socket\n")
    assert not is_ours(read_papers(folder))


def test_a_strangers_honest_submission_passes(toy: Path, data: Path) -> None:
    found = outcomes(toy, "--data", data)
    assert {outcome for outcome, _ in found.values()} == {"shown"}, found


def test_without_data_the_script_is_only_read(toy: Path) -> None:
    found = outcomes(toy)
    shown = {"files", "fields", "size", "validation unseen"}
    assert {rule: outcome for rule, (outcome, _) in found.items()} == {
        rule: "shown" if rule in shown else "not proved" for rule in RULES
    }


PEEK = "row = np.where(np.arange(ALPHABET) == target, 50.0, 1.0)"
CHEATS = {
    "looks at the token that it predicts": ("row = counts[context]\n", f"{PEEK}\n", "normalised", "Σp"),
    "probabilities that add up to 2": ("p = row / row.sum()", "p = 2 * row / row.sum()", "normalised", "is 2"),
    "looks one token further": (
        "row = counts[context]\n",
        "row = counts[context] + 5 * (val_tokens[min(at + 2, len(val_tokens) - 1)] == np.arange(ALPHABET))\n",
        "causal",
        "earlier scores",
    ),
    "learns from all of it before it scores": (
        "    total = 0.0\n",
        "    np.add.at(shipped, (val_tokens[:-1], val_tokens[1:]), 1)\n    total = 0.0\n",
        "score, then update",
        "move earlier scores",
    ),
    "learns from a token before it scores it": (
        "        row = counts[context]\n",
        "        counts[context, target] += 1\n        row = counts[context].copy()\n",
        "normalised",
        "Σp",
    ),
    "a cache that is looked up by the target": (
        "            counts = shipped.copy()\n        row = counts[context]\n",
        "            counts, cache = shipped.copy(), {}\n"
        "        row = counts[context] + 5 * cache.get((context * 260) ^ target, 0) * (np.arange(ALPHABET) == target)\n"
        "        cache[(context * 260) ^ target] = 1\n",
        "normalised",
        "key made of the target",
    ),
    "bytes that are counted twice": (", target >= 4\n", ", 2 * (target >= 4)\n", "counted once", "bytes are counted"),
    "a part of the split only": ('tokens_of(data, "val")', 'tokens_of(data, "val")[:700]', "counted once", "listed"),
    "a file from elsewhere": (
        "    shipped = np.load(HERE",
        '    np.load(HERE.parent / "honest" / "model.npy")\n    shipped = np.load(HERE',
        "self-contained",
        "honest/model.npy",
    ),
    "a connection": (
        "    total = 0.0\n",
        "    import socket\n    socket.create_connection(('127.0.0.1', 9))\n    total = 0.0\n",
        "no network",
        "socket",
    ),
    "our package, which is not counted": (
        "    total = 0.0\n",
        "    import bytegolf\n    total = 0.0\n",
        "self-contained",
        "bytegolf",
    ),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_planted_cheat_is_found(cheat: str, toy: Path, data: Path, tmp_path: Path) -> None:
    old, new, rule, words = CHEATS[cheat]
    folder = changed(toy, tmp_path, old, new)
    outcome, evidence = outcomes(folder, "--data", data)[rule]
    assert outcome == "broken"
    assert words in evidence


def test_papers_that_are_wrong(toy: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    shutil.copytree(toy, folder)
    claims = json.loads((folder / "submission.json").read_text())

    def claim(**changes: object) -> dict[str, tuple[str, str]]:
        told = {key: value for key, value in {**claims, **changes}.items() if value is not None}
        (folder / "submission.json").write_text(json.dumps(told))
        return outcomes(folder)

    assert claim(date=None, val_bpb="low")["fields"][1] == "date is missing; val_bpb is 'low', no number"
    assert claim(track=None, step_stop=None, blurb=None)["fields"][0] == "shown"  # which many submissions lack
    assert claim(val_loss=float("nan"))["fields"][0] == "broken"
    assert claim(author="")["fields"] == ("not proved", "empty: author")
    assert "bytes_code is claimed to be 10" in claim(bytes_code=10)["size"][1]
    (folder / "submission.json").write_text("[1]")
    assert outcomes(folder)["fields"][0] == "broken"
    (folder / "train_gpt.py").write_text("def (:\n")
    assert "cannot be read as Python" in outcomes(folder)["no network"][1]
    (folder / "train.log").unlink()
    assert "training log" in outcomes(folder)["files"][1]


def test_a_wrong_claim_and_too_many_bytes(toy: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "claim"
    shutil.copytree(toy, folder)
    claims = json.loads((folder / "submission.json").read_text())
    (folder / "submission.json").write_text(json.dumps({**claims, "val_bpb": claims["val_bpb"] - 0.01}))
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(16_000_000)
    found = outcomes(folder, "--data", data)
    assert found["as claimed"][0] == "broken"
    assert found["size"][0] == "broken"
    assert "of 16,000,000" in found["size"][1]


def test_a_script_that_cannot_be_run_is_not_judged_by_it(toy: Path, data: Path, tmp_path: Path) -> None:
    quiet = changed(toy, tmp_path, '"--losses"', '"--nothing"')
    assert outcomes(quiet, "--data", data)["causal"] == (
        "not proved",
        "not run: the script has no `eval --data FOLDER --losses FILE.npy` (docs/rules.md)",
    )
    shutil.rmtree(quiet)
    failing = changed(toy, tmp_path, "    table = score(given.data)\n", "    raise SystemExit('out of order')\n")
    found = outcomes(failing, "--data", data)
    assert found["causal"] == ("not proved", "by experiment: out of order")
    assert found["as claimed"][0] == "not proved"
    shutil.rmtree(failing)
    endless = changed(toy, tmp_path, "    table = score(given.data)\n", "    import time; time.sleep(60)\n")
    assert "stopped after 1 s" in outcomes(endless, "--data", data, "--seconds", 1)["causal"][1]


TRAINS = {
    "on the validation split": """
        val_tokens = load_data_shard("fineweb_val_000000.bin")
        for step in range(100):
            x, y = batch(val_tokens, step)
            loss = model(x, y)
            loss.backward()
        """,
    "on both splits at once": """
        tokens = torch.cat([load("fineweb_train_0.bin"), load("fineweb_val_0.bin")])
        for step in range(100):
            loss = model(*batch(tokens, step))
            loss.backward()
        """,
    "through a loader and a helper": """
        class Loader:
            def __init__(self, pattern, size):
                self.tokens = load(pattern)
                self.size = size

            def next(self):
                return self.tokens[: self.size]

        def learn(model, x):
            out = model(x)
            out.mean().backward()

        def main():
            loader = Loader(args.val_files, 1024)
            while True:
                learn(model, loader.next())

        main()
        """,
    "in several epochs": """
        def adapt(val_tokens):
            total_nats = 0.0
            for epoch in range(3):
                for x, y in chunks(val_tokens):
                    total_nats += score(x, y)
                    loss = model(x, y)
                    loss.backward()

        adapt(load("fineweb_val_*.bin"))
        """,
    "chunk by chunk, before their scores": """
        total_nats = 0.0
        for x, y in chunks(load("fineweb_val_*.bin")):
            model(x, y).backward()
            total_nats += score(x, y)
        """,
    "after a first look at the scores": """
        def run(v):
            total = 0.0
            for x, y in chunks(v):
                total += model(x, y)
            for x, y in chunks(v):
                model(x, y).backward()

        run(load("fineweb_val_*.bin"))
        """,
    "when it calibrates": """
        def quantise(model, val_tokens):
            hessians = collect_hessians(model, val_tokens[:4096])
            return gptq_quantise(model, hessians)

        quantise(model, load("fineweb_val_*.bin"))
        """,
}

FAIR = """
    def evaluate(model, val_tokens, optimizer):
        total_nats = 0.0
        for x, y in chunks(val_tokens):
            with torch.inference_mode():
                total_nats += model(x, y).sum().item()
            for epoch in range(3):
                loss = model(x, y)
                loss.backward()
                optimizer.step()
        return total_nats

    def main(args):
        train_loader, val_tokens = Loader(args.train_files, 1024), load(args.val_files)
        for step in range(args.steps):
            loss = model(*train_loader.next())
            loss.backward()
        print(evaluate(model, val_tokens, optimizer))
        hessians = collect_hessians(model, train_loader.next())

    main(parse())
    """


def said_of(tree: ast.Module) -> dict[str, str]:
    """The worst outcome of each rule, of a script that is only read."""
    order = ("nothing found", "shown", "not proved", "broken")
    found: dict[str, str] = {}
    for finding in check_text(Sources(Source("train_gpt.py", tree))):
        found[finding.rule] = max(found.get(finding.rule, order[0]), finding.outcome, key=order.index)
    return found


def flow(text: str) -> dict[str, str]:
    lines = text.strip("\n").splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    tree = ast.parse("\n".join(line[indent:] for line in lines))
    return said_of(tree)


@pytest.mark.parametrize("way", TRAINS)
def test_training_on_validation_tokens_is_read_from_the_script(way: str) -> None:
    assert flow(TRAINS[way])["validation unseen"] == "broken"


def test_learning_from_what_was_scored_is_no_training_on_it() -> None:
    assert "broken" not in flow(FAIR).values()
    assert flow(FAIR.replace("total_nats += model(x, y).sum().item()", "pass"))["validation unseen"] == "broken"
    sometimes = FAIR.replace("total_nats +=", "if step % 2: total_nats +=")
    assert flow(sometimes)["score, then update"] == "not proved"


def test_counts_of_validation_tokens_that_are_shipped_are_not_passed() -> None:
    """No gradient is needed to learn from them."""
    text = """
        def train(tokens):
            counts = np.zeros((260, 260))
            np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
            np.save("model.npy", counts)

        train(load("fineweb_{}_*.bin"))
        """
    assert flow(text.replace("{}", "val"))["validation unseen"] == "not proved"
    assert "broken" not in flow(text.replace("{}", "train")).values()


def test_what_functions_are_called_does_not_matter() -> None:
    """Methods of one name in several classes, and one class made twice, are told apart."""
    text = """
        class Loader:
            def __init__(self, pattern):
                self.tokens = load(pattern)

            def run(self):
                return self.tokens

        class Trainer:
            def run(self, data):
                model(data).backward()

        class Scorer:
            def run(self, data):
                return model(data)

        def main():
            ours, theirs = (Loader(f"fineweb_{split}_*.bin") for split in ("train", "val"))
            Trainer().run(ours.run())
            Scorer().run(theirs.run())

        main()
        """
    assert "broken" not in flow(text).values()
    swapped = text.replace("Trainer().run(ours", "Trainer().run(theirs")
    assert flow(swapped)["validation unseen"] == "broken"


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("no network", "import urllib.request"),
        ("no network", "from huggingface_hub import hf_hub_download"),
        ("no network", "import subprocess\nsubprocess.run(['curl', 'x'])\nsubprocess.run('curl x', shell=True)"),
        ("no network", "import torch\ntorch.hub.load('a', 'b')"),
        ("self-contained", "import bytegolf.model"),
        ("self-contained", "open('/home/me/weights.bin', 'rb')"),
        ("self-contained", "np.load('../weights.npy')"),
        ("self-contained", "from .helper import x"),
        ("normalised", "def f(t, targets):\n    key = hash_ids(t, targets)\n    return t[key]"),
        ("normalised", "def f(t, y):\n    return ngram_counts[(t, y)]"),
    ],
)
def test_what_a_script_says_of_itself(rule: str, text: str) -> None:
    found = said_of(ast.parse(text))
    assert [name for name, outcome in found.items() if outcome == "broken"] == [rule]


def test_common_code_breaks_no_rule() -> None:
    text = """
import subprocess, torch, torch.distributed as dist
def loss(logits, targets, counts, context):
    nll = -torch.log_softmax(logits, -1)[torch.arange(len(targets)), targets]
    counts[context, targets] += 1
    weights = nll * 2 % 7
    return weights[0] + logits.gather(1, targets)
open("/proc/cpuinfo")
subprocess.run(["nvidia-smi"])
"""
    assert "broken" not in said_of(ast.parse(text)).values()


# ------------------------------------------------------------------------------------- packed, hidden and generated


def verdicts(folder: Path) -> dict[str, str]:
    """The outcome of each rule, of a folder whose script is only read."""
    found = audit(folder, None)
    assert found.verdict != "passed", "a search that finds nothing shows nothing"
    return {row.rule: row.outcome for row in found.verdicts}


@pytest.mark.parametrize("packing", PACKINGS)
def test_honest_and_dishonest_submissions_packed_in_every_way(packing: str, tmp_path: Path) -> None:
    """The table of verdicts: what is dishonest is broken however it is packed, and what is honest never."""
    for number, (name, text) in enumerate(HONEST.items()):
        compile(text, name, "exec")
        folder = folder_of(tmp_path / f"h{number}", "")
        folder_of(folder, PACKINGS[packing](folder, text))
        found = verdicts(folder)
        assert "broken" not in found.values(), (name, found)
    for number, (name, (rule, text)) in enumerate(DISHONEST.items()):
        compile(text, name, "exec")
        folder = folder_of(tmp_path / f"d{number}", "")
        folder_of(folder, PACKINGS[packing](folder, text))
        assert verdicts(folder)[rule] == "broken", name


@pytest.mark.parametrize("way", UNSEEN)
def test_what_cannot_be_unpacked_leaves_every_textual_rule_unproved(way: str, tmp_path: Path) -> None:
    found = audit(folder_of(tmp_path / "x", PLAIN + UNSEEN[way]), None)
    assert found.verdict == "unproved"
    for row in found.verdicts:
        if row.rule in TEXTUAL:
            assert row.outcome == "not proved"
            assert any("train_gpt.py:" in line and "not read" in line for line in row.evidence), row


@settings(max_examples=500, deadline=None)
@given(chain=st.lists(st.sampled_from(sorted(CODERS)), max_size=4), pieces=st.integers(1, 9), nested=st.integers(0, 1))
def test_any_chain_of_packing_is_undone(chain: list[str], pieces: int, nested: int) -> None:
    text = "import socket\nanswer = 42\n"
    for _ in range(nested + 1):
        text = f"{IMPORTS}exec({packed(text, *chain, pieces=pieces)})\n"
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "train_gpt.py"
        script.write_text(text)
        sources = read_sources(Path(name), script)
        assert sources is not None
        assert sources.obstacles == []
        assert ast.unparse(list(sources.every())[-1].tree) == "import socket\nanswer = 42"


def test_bombs_are_not_unpacked(tmp_path: Path) -> None:
    for number, coder in enumerate(("zlib", "gzip", "bz2", "lzma", "brotli")):
        bomb = packed("#" * 50_000_000, coder)
        found = audit(folder_of(tmp_path / str(number), f"{IMPORTS}exec({bomb})"), None)
        assert any("too much" in line for row in found.verdicts for line in row.evidence), coder


HIDDEN = {
    "vocab.txt": "w = open('vocab.txt', 'rb').read()",
    "__pycache__/w.bin": "w = open('__pycache__/w.bin', 'rb').read()",
    "train2.log": "",
    ".cache": "",
    "picture.png": "w = open('picture.png', 'rb').read()",
    "notes/README": "",
    "fineweb_1024_bpe.model": "",
    "lib.so": "",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_weights_are_counted_wherever_they_hide(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", PLAIN + HIDDEN[name])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(np.random.default_rng(0).bytes(17_000_000))
    assert verdicts(folder)["size"] == "broken"


def test_weights_in_a_literal_or_behind_a_link(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", "import weights\n")
    (folder / "weights.py").write_text("W = " + repr("x" * 17_000_000))
    assert verdicts(folder)["size"] == "broken"
    folder = folder_of(tmp_path / "y", PLAIN)
    (tmp_path / "elsewhere.bin").write_bytes(b"\0" * 8_900_000)
    (folder / "model.bin").symlink_to(tmp_path / "elsewhere.bin")
    assert verdicts(folder)["self-contained"] == "broken"
    folder = folder_of(tmp_path / "z", PLAIN)
    (folder / "a.bin").write_bytes(b"\0" * 8_000_000)
    (folder / "b.bin").symlink_to(folder / "a.bin")  # one file, counted once
    assert verdicts(folder)["size"] == "shown"


def test_several_scripts_of_which_one_is_used(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", PLAIN)
    (folder / "prepare_data.py").write_text("import huggingface_hub\n")
    found = audit(folder, None)
    assert found.verdict == "unproved"
    assert found.script == "train_gpt.py"
    assert any("prepare_data.py" in line for row in found.verdicts if row.rule == "size" for line in row.evidence)


def test_a_summary_for_a_pull_request(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", "import socket  # <script>|`\n" + PLAIN)
    ran = cli("audit", folder, "--markdown")
    assert ran.code == EXITS["broken"]
    assert ran.out.startswith("**`bytegolf audit`: broken: no network; ")
    rows = [line for line in ran.out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(RULES)
    assert {line.count(" | ") for line in rows[2:]} == {2}
    honest = cli("audit", folder_of(tmp_path / "y", PLAIN), "--markdown")
    assert honest.code == EXITS["unproved"]
    assert "not passed" in honest.out


def test_a_packed_copy_of_a_submission_runs_like_the_clear_one(toy: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(toy, folder)
    (folder / "train_gpt.py").write_text(f"{IMPORTS}exec({packed(SCRIPT, 'lzma', 'b85')})\n")
    claims = json.loads((folder / "submission.json").read_text())
    claims["bytes_code"] = (folder / "train_gpt.py").stat().st_size
    claims["bytes_total"] = claims["bytes_code"] + claims["bytes_model_int8_zlib"]
    (folder / "submission.json").write_text(json.dumps(claims))
    found = outcomes(folder, "--data", data)
    assert {outcome for outcome, _ in found.values()} == {"shown"}, found


def test_modules_without_byte_code_are_read_and_get_none(toy: Path, data: Path, tmp_path: Path) -> None:
    """Python would write it beside them, also where an installer wrote none: no write of the script's."""
    folder = tmp_path / "in two files"
    shutil.copytree(toy, folder)
    (folder / "helper.py").write_text("WIDTH = 1\n")
    script = folder / "train_gpt.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(folder)!r})\nimport helper\n{script.read_text()}")
    files = sorted(folder.rglob("*"))
    found = outcomes(folder, "--data", data)
    assert found["self-contained"][0] != "broken", found
    assert found["causal"][0] == "shown", found
    assert sorted(folder.rglob("*")) == files


class _Stopped(KeyboardInterrupt):
    """As the command line has SIGTERM raise."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, _Stopped])
def test_ctrl_c_ends_the_trial_too(
    kind: type[KeyboardInterrupt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script under trial is in a session of its own, which hears no Ctrl-C: it was left behind, or waited for."""

    def stop(number: int, frame: object) -> None:
        raise kind

    endless = tmp_path / "endless.py"
    endless.write_text(
        "import os, signal, time\nopen('pid', 'w').write(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGUSR1)\ntime.sleep(20)\n"
    )
    monkeypatch.setattr(experiments, "__file__", str(endless))
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(kind):
            trial._run(tmp_path / "job.json", tmp_path, tmp_path, 60, kernels=False)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_bad_input(tmp_path: Path, toy: Path) -> None:
    assert "is no folder" in refused("audit", tmp_path / "none")
    assert "is empty" in refused("audit", tmp_path)
    assert "no data folder" in refused("audit", toy, "--data", tmp_path / "none")
    assert "audit" in good("audit", "--help").out
