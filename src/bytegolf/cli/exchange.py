"""Verbs that bring models in and out: from public files, to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bytegolf.cli.common import EXCHANGE, Json, answers, app, finish, screen


@app.command(name="import", group=EXCHANGE, sort_key=50)
@answers("bytegolf.artifact.results:ImportResult")
def import_(
    source: Annotated[str, Parameter(help="A .pt or .safetensors file, its folder, or hf:owner/name[@revision].")],
    /,
    *,
    out: Annotated[Path, Parameter(help="A folder, or a file that ends in .safetensors; not there yet.")],
    config: Annotated[
        Path | None, Parameter(help="The model's JSON; by default one beside the weights, or a released model's.")
    ] = None,
    json: Json = False,
) -> None:
    """Import a public H-Net (arXiv 2507.07955): weights by our names, as they are.

    Nothing in a .pt file is executed: its tensors are read, what is unknown is
    left out, and a file that would call something is refused. Weights keep
    their dtype and are memory-mapped when the model is opened. What is missing,
    too much or of another shape is named, and nothing is written.

    Every verb that takes a model takes what this writes, and public files and
    hf:owner/name as they are. `export OUT export.bits=8 --out FILE` quantises.

    Example: bytegolf import hf:cartesia-ai/hnet_1stage_L --out models/hnet-L
    """
    from bytegolf.artifact import exchange

    done = exchange.import_model(source, out, config)
    kinds = " and ".join(done.dtypes)
    levels = f"{done.levels} {'level' if done.levels == 1 else 'levels'} of chunks"
    screen(json).print(f"wrote {done.weights}: {done.params:,} weights in {kinds}, {levels}", soft_wrap=True)
    if done.commit:
        screen(json).print(f"of commit {done.commit}", soft_wrap=True)
    finish(json, done)


@app.command(group=EXCHANGE, sort_key=54)
@answers("bytegolf.tools.publish.results:PushResult")
def push(
    model: Annotated[Path, Parameter(help="A run's folder, an artifact file, or imported weights.")],
    repository: Annotated[str, Parameter(help="Where to, as owner/name; made if it is not there.")],
    /,
    *,
    licence: Annotated[str, Parameter(help="Of the model, as the hub names licences (mit, cc-by-4.0).")] = "unknown",
    private: Annotated[bool, Parameter(help="Make a new repository private.")] = False,
    card: Annotated[Path | None, Parameter(help="Write the model card into this file, and push nothing.")] = None,
    json: Json = False,
) -> None:
    """Publish a model on the Hugging Face hub, with a card written from its run.

    One commit: the artifact, the same weights as safetensors, config.toml,
    summary.json, the tokenizer, and README.md, the card: what it was trained
    on, its score with the command that gives it, its chunks in a sentence,
    sizes, licence and limits. `bytegolf.load("hf:owner/name")` loads it.

    Log in first (`hf auth login`, or $HF_TOKEN); $HF_ENDPOINT is honoured. What
    has arrived before an interruption is not sent again.

    Example: bytegolf push runs/cpu-demo me/cpu-demo --licence mit

    With --card, the only key of the JSON is card: the file.
    """
    from bytegolf.tools.publish import push as publishing

    if card is not None:
        publishing.write_card(model, repository, licence, card)
        screen(json).print(f"wrote {card}", soft_wrap=True)
        finish(json, {"card": str(card)})
        return
    done = publishing.push(model, repository, licence, private)
    screen(json).print(f"pushed {', '.join(done.files)} ({done.bytes:,} bytes)", soft_wrap=True)
    screen(json).print(f'commit {done.commit}: bytegolf.load("hf:{repository}@{done.commit[:12]}")', soft_wrap=True)
    finish(json, done)
