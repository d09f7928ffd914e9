"""The verb that asks what a trained model can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, SCORES, Data, Json, answers, app, finish, screen
from bytegolf.errors import BytegolfError


@app.command(group=SCORES, sort_key=32)
@answers("bytegolf.tools.bench.results:BenchmarkResult")
def bench(
    *models: Annotated[Path, Parameter(help="Runs' folders or artifact files, to be set side by side.")],
    data: Data = None,
    task: Annotated[
        tuple[str, ...],
        Parameter(help="noise, characters, boundaries, or a task of lm-eval; may be repeated. By default those three."),
    ] = (),
    file: Annotated[
        tuple[Path, ...],
        Parameter(help="Multiple-choice questions: JSON lines of context, choices, answer; may be repeated."),
    ] = (),
    noise: Annotated[bool, Parameter(help="Ask --file and lm-eval's tasks under each perturbation too.")] = False,
    limit: Annotated[int, Parameter(help="Bytes of validation text; 0 = all.", validator=COUNT)] = 32768,
    questions: Annotated[int, Parameter(help="Questions of each task; 0 = all.", validator=COUNT)] = 100,
    morphemes: Annotated[
        Path | None, Parameter(help="Words with their morphemes separated by spaces; by default 275 English ones.")
    ] = None,
    include: Annotated[
        tuple[Path, ...], Parameter(help="A folder of lm-eval tasks (YAML) of your own; may be repeated.")
    ] = (),
    batch: Annotated[int, Parameter(help="Texts at a time.", validator=validators.Number(gte=1))] = 16,
    length: Annotated[int, Parameter(help="Tokens that a window reads; 0 = as in training.", validator=COUNT)] = 0,
    seed: Annotated[int, Parameter(help="What perturbations and questions are drawn from.")] = 0,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Ask what models can do, beside what chance would give.

    noise is the BPB of validation text under five perturbations, characters are
    questions about letters, and boundaries hold chunks against words and
    morphemes; all with n and standard error, without a network or other packages.
    Tasks of lm-eval by name (lambada_openai, hellaswag, piqa, arc_easy,
    winogrande, openbookqa, …) need pip install 'bytegolf[bench]', and a network
    the first time.

    Example: bytegolf bench runs/cpu-30min runs/cpu-30min-sp1024
    Example: bytegolf bench runs/cpu-30min --file questions.jsonl --noise
    Example: bytegolf bench runs/cpu-30min --task hellaswag --task arc_easy --questions 0
    """
    from bytegolf.progress import Reporter
    from bytegolf.tools.bench import results, run

    if not models:
        raise BytegolfError("name a model to ask: a run's folder or an artifact file")
    tasks = task or (() if file else run.OWN)
    wanted = run.Wanted(tasks, file, noise, limit, questions, morphemes, include, batch=batch, length=length, seed=seed)
    with Reporter() as reporter:
        found = run.bench(models, data, wanted, device, reporter)
    results.show(screen(json), found)
    finish(json, found)
