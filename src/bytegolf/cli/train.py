"""Verbs that train, and list what can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bytegolf.cli.common import TRAINING, Json, answers, app, finish, readers, screen


@app.command(group=TRAINING, sort_key=14)
@answers("bytegolf.api.results:Summary")
def train(
    preset: Annotated[str, Parameter(help="A preset's name (see `bytegolf presets`) or a TOML file.")],
    /,
    *overrides: Annotated[str, Parameter(help="Changes, as section.key=value.")],
    data: Annotated[Path | None, Parameter(help="Folder made by `bytegolf prepare`: sets data.path.")] = None,
    out: Annotated[Path | None, Parameter(help="The run's folder; by default runs/<name>.")] = None,
    init: Annotated[
        str | None, Parameter(help="Start from the weights of this run, artifact or imported model: sets train.init.")
    ] = None,
    resume: Annotated[bool, Parameter(help="Go on with the run in that folder, if there is one.")] = False,
    json: Json = False,
) -> None:
    """Train a model, export it, score the file, show its chunks.

    Ctrl-C stops cleanly: what was trained so far is still exported and scored.

    With --init the model and its tokenizer are those of that file, and the preset
    says how it is trained; train.adapters=8 trains low-rank adapters only.

    Example: bytegolf train cpu-demo train.max_seconds=60 --out runs/quick
    Example: bytegolf train cpu-demo --init runs/quick --out runs/tuned
    """
    from bytegolf.api.run import train
    from bytegolf.cli import show

    run = train(preset, data, out, init=init, overrides=overrides, resume=resume)
    if run.summary:
        show.outcome(screen(json), run, run.summary)
        finish(json, run.summary)


@app.command(group=TRAINING, sort_key=12)
@answers("bytegolf.api.results:Presets")
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

    With a name, the only key of the JSON is config: the settings.
    """
    if name is not None:
        from bytegolf.config import Config, to_dict

        config = Config.load(name, overrides)
        readers(json).write(config.to_toml())
        finish(json, {"config": to_dict(config)})
        return
    from bytegolf.cli import preset_list

    found = preset_list.presets()
    screen(json).print(preset_list.preset_table(found))
    finish(json, found)
