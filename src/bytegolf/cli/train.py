"""Verbs that train, and list what can be trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bytegolf.cli.common import Json, app, finish, screen, toml_string


@app.command(sort_key=10)
def train(
    preset: Annotated[str, Parameter(help="A preset's name (see `bytegolf presets`) or a TOML file.")],
    /,
    *overrides: Annotated[str, Parameter(help="Changes, as section.key=value.")],
    data: Annotated[Path | None, Parameter(help="Folder made by `bytegolf prepare`: sets data.path.")] = None,
    out: Annotated[Path | None, Parameter(help="The run's folder; by default runs/<name>.")] = None,
    resume: Annotated[
        bool, Parameter(help="Go on with the run in that folder, if there is one.", show_default=False)
    ] = False,
    json: Json = False,
) -> None:
    """Train a model, export it, score the file, show its chunks.

    Ctrl-C stops cleanly: what was trained so far is still exported and scored.

    Example: bytegolf train cpu-demo train.max_seconds=60 --out runs/quick

    JSON keys, as in the run's summary.json: those of `bytegolf eval`, and name,
    seed, steps, train_seconds (with gptq_seconds), train_tokens, train_bytes,
    train_bytes_per_second, bpb_unquantised (null unless eval.unquantised),
    validation_bpb_unquantised_sample and validation_bpb_sample (the weights before
    and after quantisation, on train.validate_tokens), stopped_early, chunks_before
    and chunks_after (byte offsets in two standard sentences), artifact.
    """
    from bytegolf.api import run as training
    from bytegolf.cli import show
    from bytegolf.config import Config

    changes = [*overrides, *([f"data.path={toml_string(str(data))}"] if data else [])]
    config = Config.load(preset, changes)
    outcome = training.train(config, out or Path("runs") / config.name, resume=resume)
    if outcome:
        show.outcome(screen(), outcome)
        finish(json, outcome.summary)


@app.command(sort_key=90)
def presets(
    name: Annotated[str | None, Parameter(help="Print all settings of this preset or TOML file.")] = None,
    /,
    *overrides: Annotated[str, Parameter(help="Changes, as section.key=value.")],
    json: Json = False,
) -> None:
    """List the presets: what each is, and how large.

    With a name, all that this one's file and those that it extends say, and the
    defaults: a TOML file to change and train.

    Example: bytegolf presets
    Example: bytegolf presets study1-byte-4h train.seed=2 > mine.toml

    JSON keys: presets, a list of name, about, tokenizer, params,
    artifact_estimate_bytes (before compression); with a name, config.
    """
    if name is not None:
        from bytegolf.config import Config, to_dict

        config = Config.load(name, overrides)
        sys.stdout.write(config.to_toml())
        finish(json, {"config": to_dict(config)})
        return
    from bytegolf.cli import show

    rows = show.preset_rows()
    screen().print(show.preset_table(rows))
    finish(json, {"presets": rows})
