"""A model of ours for lm-evaluation-harness: ``--model bytegolf --model_args path=runs/demo``.

lm-eval 0.4.13 looks for models in its own list and in what was imported; so this module is also its command line:

    python -m bytegolf.tools.bench.lm_eval run --model bytegolf --model_args path=runs/demo --tasks lambada_openai

takes what ``lm_eval`` takes. `bytegolf bench RUN --task …` and ``import bytegolf.tools.bench.lm_eval`` do the same.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bytegolf.errors import BytegolfError, install

try:
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise BytegolfError(
        f"tasks of lm-eval need the package lm_eval: {install('bench')}; the tasks noise, characters and "
        "boundaries, and --file, need nothing"
    ) from error

import torch

from bytegolf.api.model import Model, load
from bytegolf.tools.bench.likelihood import NOISES, Likelihood, perturbed

BATCH = 16
BYTES_PER_TOKEN = 4
"""What lm-eval's ``max_gen_toks`` counts are pieces of a subword tokenizer; so many bytes stand for one."""
Value = float | int | str


@register_model("bytegolf")
class BytegolfLM(LM):  # type: ignore[misc]  # it is Any where lm_eval is not installed
    """The requests of lm-eval, answered by a run or an artifact.

    Texts begin behind a BOS. ``noise`` perturbs all that is scored (AntSpeak, Drop, RandomCase, Repeat, UpperCase).
    """

    def __init__(
        self,
        path: str | Model,
        data: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | str = BATCH,
        max_batch_size: int | None = None,
        max_length: int = 0,
        stride: int = 0,
        noise: str = "",
        seed: int = 0,
    ) -> None:
        """The arguments of ``--model_args``.

        Args:
            path: a run's folder, an artifact file, or what ``bytegolf.load`` takes besides.
            data: the folder where a SentencePiece tokenizer is looked for.
            device: as of ``bytegolf.load``; so is ``precision``.
            batch_size: texts at once; "auto" is 16.
            max_batch_size: not used.
            max_length: tokens of a window; 0 = as in training.
            stride: new tokens per window of whole texts (``loglikelihood_rolling``); 0 = windows do not overlap.
            noise: a perturbation of every text.
            seed: what the perturbation draws from.

        Raises BytegolfError for a model that cannot be loaded, or a perturbation that does not exist.
        """
        super().__init__()
        if noise and noise not in NOISES:
            raise BytegolfError(f"noise is {noise!r}: choose one of {', '.join(NOISES)}")
        model = path if isinstance(path, Model) else load(path, data=data, device=device, precision=precision)  # type: ignore[arg-type]
        batch = BATCH if str(batch_size).startswith("auto") else int(batch_size)
        self.asked = Likelihood(model, batch, int(max_length))
        self.stride, self.noise, self.seed = int(stride), noise, int(seed)
        self._device = model.device

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> BytegolfLM:
        """From ``--model_args``, which come before what lm-eval adds; its device may be one that is not there."""
        added = {key: value for key, value in (additional_config or {}).items() if value is not None}
        if str(added.get("device", "")).startswith("cuda") and not torch.cuda.is_available():
            del added["device"]
        return cls(**{**added, **arg_dict})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> BytegolfLM:
        """The same, of a string."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return self.asked.model.tokenizer.name

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation behind its context: nats, and whether it is the greedy one."""
        pairs = [(self._noisy(context), self._noisy(continuation)) for context, continuation in _arguments(requests)]
        answers = [(found.log_likelihood, found.greedy) for found in self.asked.continuations(pairs)]
        return self._kept("loglikelihood", requests, answers)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each text by itself, behind a BOS, every token once: nats."""
        texts = [self._noisy(text) for (text,) in _arguments(requests)]
        answers = [-score.nats for score in self.asked.rolling(texts, stride=self.stride)]
        return self._kept("loglikelihood_rolling", requests, answers)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, greedily unless ``do_sample``, up to the first of ``until``.

        At most ``max_gen_toks`` tokens, of which one is ``BYTES_PER_TOKEN`` bytes, and half a window.
        """
        answers = [""] * len(requests)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for at, (_, settings) in enumerate(_arguments(requests)):
            until = settings.get("until") or []
            until = (until,) if isinstance(until, str) else tuple(until)
            size = min(BYTES_PER_TOKEN * int(settings.get("max_gen_toks", 256)), self.asked.length // 2)
            drawn = settings.get("do_sample", float(settings.get("temperature") or 0) > 0)
            temperature = float(settings.get("temperature") or 1.0) if drawn else 0.0
            groups.setdefault((until, size, temperature, float(settings.get("top_p", 1.0))), []).append(at)
        for (until, size, temperature, top_p), places in groups.items():
            prompts = [self._noisy(requests[at].args[0]) for at in places]
            for at, text in zip(places, self.asked.generate(prompts, until, size, temperature, top_p), strict=True):
                answers[at] = text
        return self._kept("generate_until", requests, answers)

    def _noisy(self, text: str) -> str:
        return perturbed(text, self.noise, self.seed)

    def _kept(self, kind: str, requests: Sequence[Any], answers: list[Any]) -> list[Any]:
        """``answers``, which lm-eval's cache (``--use_cache``) is told of."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers


def _arguments(requests: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]


def evaluate(
    model: Model,
    tasks: Sequence[str],
    *,
    folders: Sequence[Path] = (),
    limit: int = 0,
    noise: str = "",
    batch: int = BATCH,
    length: int = 0,
) -> dict[str, dict[str, Value]]:
    """The figures of lm-eval's ``tasks``, by name: metrics, standard errors, n, and chance where there are choices.

    ``folders`` hold tasks of one's own (YAML); ``limit`` > 0 takes so many questions of each.

    Raises BytegolfError for a task that lm-eval does not know.
    """
    manager = _tasks(tuple(folders))
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise BytegolfError(f"lm-eval knows no task {unknown[0]!r}: `lm_eval ls tasks` lists them, or name --include")
    adapter = BytegolfLM(model, batch_size=batch, max_length=length, noise=noise)
    # Its bootstrap would fork this process, threads and all, and end the forks by SIGTERM. The command line handles
    # that signal as it does Ctrl-C; where it reaches a fork before its loop, it is lost, and all wait for ever.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # the same figures, from the same seeds
    found = lm_eval.simple_evaluate(
        adapter, tasks=list(tasks), limit=limit or None, task_manager=manager, bootstrap_iters=1000, log_samples=True
    )
    assert found is not None, "one process alone gets results"
    return {task: _figures(found, task) for task in found["results"]}


@functools.cache
def _tasks(folders: tuple[Path, ...]) -> Any:
    """The tasks that lm-eval knows, and those in ``folders``: looking through them takes seconds."""
    return TaskManager(include_path=[str(folder) for folder in folders] or None)


def _figures(found: Any, task: str) -> dict[str, Value]:
    """One task's metrics without the name of their filter, n and chance."""
    figures: dict[str, Value] = {}
    for key, value in found["results"][task].items():
        name = key.removesuffix(",none")
        if isinstance(value, float | int) and name not in ("sample_len", "sample_count"):
            figures[name] = value
    samples = found.get("samples", {}).get(task, [])
    figures["n"] = len(samples)
    kind = found.get("configs", {}).get(task, {}).get("output_type")
    if kind == "multiple_choice" and samples:
        figures["chance"] = sum(1 / len(sample["arguments"]) for sample in samples) / len(samples)
    return figures


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())
