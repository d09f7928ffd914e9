"""Our models under lm-evaluation-harness 0.4.13: tasks of seven kinds from local files, whose figures are made again.

pip install 'bytegolf[bench]' && pytest tests/integration/test_lm_eval.py
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import TinyRun, good, refused

import bytegolf
from bytegolf.bpb import Score
from bytegolf.tools.bench.likelihood import Likelihood, perturbed

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'bytegolf[bench]'")

PARTIES = ["the people", "law", "war", "duty"]
ENDINGS = ["have peace.", "of of of.", "qqq zzz.", "pay revenue."]
THANKS = "The citizens thanked the nation as _ had peace."

ROWS: dict[str, list[dict[str, Any]]] = {
    "arc": [
        {"question": f"Who has power {key}?", "choices": {"text": PARTIES, "label": list("ABCD")}, "answerKey": key}
        for key in "BADC"
    ],
    "hellaswag": [{"ctx": f"The state {at}", "endings": ENDINGS, "label": str(at)} for at in range(4)],
    "piqa": [{"goal": "To have peace", "sol1": "sign a treaty.", "sol2": "xx yy.", "label": at % 2} for at in range(4)],
    "winogrande": [
        {"sentence": THANKS, "option1": "the citizens", "option2": "the nation", "answer": key} for key in "1212"
    ],
    "lambada": [{"text": f"The people of the united states {word}"} for word in ("people", "and", "war", "law")],
    "wikitext": [{"page": "The present year. " * count} for count in (1, 3, 20)],
    "write": [{"prompt": "The people of", "wanted": "x"}, {"prompt": "Congress", "wanted": "y"}],
}

CHOICES = """
output_type: multiple_choice
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
TASKS = {
    "arc": f"""{CHOICES}
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices.text}}}}"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
""",
    "hellaswag": f"""{CHOICES}
doc_to_text: "{{{{ctx}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: "{{{{label|int}}}}"
""",
    "piqa": f"""{CHOICES}
doc_to_text: "Question: {{{{goal}}}}\\nAnswer:"
doc_to_choice: "{{{{[sol1, sol2]}}}}"
doc_to_target: label
""",
    "winogrande": f"""{CHOICES}
doc_to_text: "{{{{['1', '2'].index(answer)}}}}"
doc_to_choice: "{{{{[sentence.split('_')[0] + option1, sentence.split('_')[0] + option2]}}}}"
doc_to_target: "{{{{sentence.split('_')[1]}}}}"
""",
    "lambada": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "wikitext": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "write": """
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{wanted}}"
generation_kwargs: {until: ["e"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks over local copies of the data sets' forms."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = (
            f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}\ntest_split: test\n"
        )
        (folder / f"{name}.yaml").write_text(f"task: local_{name}\n{data}{TASKS[name]}")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def run(run: TinyRun, tasks: Path, *names: str, noise: str = "") -> tuple[dict[str, Any], Likelihood]:
    from bytegolf.tools.bench.lm_eval import evaluate

    model = bytegolf.load(run.folder, data=run.data, device="cpu", precision="fp32")
    return evaluate(model, [f"local_{name}" for name in names], folders=[tasks], noise=noise), Likelihood(model)


def best(asked: Likelihood, pairs: list[tuple[str, str]], per_byte: bool = False) -> int:
    scores = [found.log_likelihood for found in asked.continuations(pairs)]
    if per_byte:
        scores = [score / len(pair[1].lstrip()) for score, pair in zip(scores, pairs, strict=True)]
    return scores.index(max(scores))


@pytest.mark.parametrize("name", ["tiny_run", "subword_run"])
def test_every_kind_of_task(name: str, tasks: Path, request: pytest.FixtureRequest) -> None:
    """With what the same requests give when they are put to the model one by one."""
    found, asked = run(request.getfixturevalue(name), tasks, *TASKS)
    right = [
        best(asked, [(f"Question: {row['question']}\nAnswer:", f" {each}") for each in row["choices"]["text"]])
        == "ABCD".index(row["answerKey"])
        for row in ROWS["arc"]
    ]
    assert found["local_arc"]["acc"] == sum(right) / 4
    assert found["local_arc"]["chance"] == 0.25
    assert found["local_arc"]["n"] == 4
    assert found["local_arc"]["acc_stderr"] >= 0
    right = [
        best(asked, [(row["ctx"], f" {each}") for each in row["endings"]], per_byte=True) == int(row["label"])
        for row in ROWS["hellaswag"]
    ]
    assert found["local_hellaswag"]["acc_norm"] == sum(right) / 4
    assert found["local_piqa"]["chance"] == found["local_winogrande"]["chance"] == 0.5
    parts = ROWS["winogrande"][0]["sentence"].split("_")
    likelier = best(asked, [(parts[0] + row, parts[1]) for row in ("the citizens", "the nation")])
    assert (
        found["local_winogrande"]["acc"] == sum(likelier == "12".index(row["answer"]) for row in ROWS["winogrande"]) / 4
    )
    pairs = [tuple(row["text"].rsplit(" ", 1)) for row in ROWS["lambada"]]
    answers = asked.continuations([(before, f" {last}") for before, last in pairs])
    assert found["local_lambada"]["acc"] == sum(each.greedy for each in answers) / 4
    assert found["local_lambada"]["perplexity"] == pytest.approx(
        math.exp(-sum(a.log_likelihood for a in answers) / 4), rel=1e-4
    )
    assert found["local_write"]["n"] == 2


def test_rolling_bits_per_byte_are_evals(tiny_run: TinyRun, tasks: Path) -> None:
    found, asked = run(tiny_run, tasks, "wikitext")
    pages = [row["page"] for row in ROWS["wikitext"]]
    total = sum(asked.rolling(pages), Score())
    assert total.bytes == sum(map(len, pages)), "no byte is dropped"
    assert found["local_wikitext"]["bits_per_byte"] == pytest.approx(total.bpb, abs=1e-6)


def test_noise_perturbs_contexts_and_choices(tiny_run: TinyRun, tasks: Path) -> None:
    clean, asked = run(tiny_run, tasks, "wikitext")
    noisy, _ = run(tiny_run, tasks, "wikitext", noise="UpperCase")
    shouted = asked.rolling([perturbed(row["page"], "UpperCase") for row in ROWS["wikitext"]])
    assert noisy["local_wikitext"]["bits_per_byte"] == pytest.approx(sum(shouted, Score()).bpb, abs=1e-6)
    assert noisy != clean


def test_lm_evals_own_command_line_and_cache(tiny_run: TinyRun, tasks: Path, tmp_path: Path) -> None:
    arguments = f"path={tiny_run.folder},device=cpu,precision=fp32,max_length=64"
    command = [
        sys.executable,
        "-m",
        "bytegolf.tools.bench.lm_eval",
        "run",
        "--model",
        "bytegolf",
        "--model_args",
        arguments,
    ]
    options = ["--include_path", str(tasks), "--tasks", "local_arc,local_write", "--batch_size", "2", "--limit", "2"]
    places = ["--use_cache", str(tmp_path / "kept"), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, *options, *places], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "local_arc" in done.stdout
    assert list(tmp_path.glob("kept*.db"))


def test_the_verb_and_a_task_that_is_not_there(tiny_run: TinyRun, tasks: Path) -> None:
    options = ("--include", tasks, "--questions", 2, "--device", "cpu")
    ran = good("bench", tiny_run.folder, "--task", "local_arc", *options, "--noise", "--json")
    (model,) = ran.json["models"]
    assert set(model["harness"]) >= {"local_arc", "local_arc (AntSpeak)"}
    assert model["harness"]["local_arc"]["n"] == 2
    assert "no task 'nothing'" in refused("bench", tiny_run.folder, "--task", "nothing", *options)
