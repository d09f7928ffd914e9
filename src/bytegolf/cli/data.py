"""Verbs that fetch and make data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, TRAINING, Json, answers, app, finish, screen


@app.command(group=TRAINING, sort_key=11)
@answers("bytegolf.data.results:FetchResult")
def fetch(
    *,
    out: Annotated[Path, Parameter(help="The data folder to fill.")],
    variant: Annotated[str, Parameter(help="Data sets by their short names, with commas between.")] = "sp1024",
    train_shards: Annotated[
        int | None,
        Parameter(help="Training shards, the first ones; by default 80, or all.", validator=COUNT),
    ] = None,
    with_docs: Annotated[bool, Parameter(help="The documents too, with their sidecar.")] = False,
    export: Annotated[
        bool, Parameter(help="Make variants that are not published (byte260) from the documents, with `prepare`.")
    ] = False,
    mirror: Annotated[
        str | None, Parameter(help="A folder or an http(s) address with the published layout; by default the hub.")
    ] = None,
    repo: Annotated[str | None, Parameter(help="A dataset repository on the hub.")] = None,
    root: Annotated[
        str | None, Parameter(help="The folder with manifest.json; by default `datasets` on the hub, none in a mirror.")
    ] = None,
    jobs: Annotated[int, Parameter(help="Files at once.", validator=validators.Number(gte=1, lte=64))] = 8,
    verify: Annotated[bool, Parameter(help="Read again what was checked before; replace what has changed.")] = False,
    dry_run: Annotated[bool, Parameter(help="Only say what would be fetched, and what room it needs.")] = False,
    json: Json = False,
) -> None:
    """Fetch published data: FineWeb as token shards, tokenizers, documents.

    The manifest first, then the validation split and the first training shards.
    What room that needs is told before anything is fetched, and refused where it
    is not there. It can be killed and run again: what is there is not fetched
    again, and a file appears only once its size, hash, header and ids are right.

    byte260 is not published: --export fetches the documents and makes it here.

    Example: bytegolf fetch --train-shards 1 --out data/fineweb
    Example: bytegolf fetch --variant sp1024,byte260 --export --out data/fineweb
    Example: bytegolf fetch --mirror https://example.org/fineweb --out data/fineweb
    """
    from bytegolf.errors import BytegolfError
    from bytegolf.folders import in_words
    from bytegolf.tools.fetch import job as fetching
    from bytegolf.tools.fetch.download import REPOSITORY

    if mirror is not None and repo is not None:
        raise BytegolfError("both --mirror and --repo are given: leave one out")
    variants = [name.strip() for name in variant.split(",") if name.strip()]
    if not variants:
        raise BytegolfError("--variant names nothing: give sp1024, byte260 or another data set")
    console = screen(json)
    result = fetching.run(
        out,
        list(dict.fromkeys(variants)),
        mirror=mirror,
        repository=repo or REPOSITORY,
        root=root,
        train_shards=train_shards,
        documents=with_docs,
        export=export,
        verify=verify,
        dry_run=dry_run,
        workers=jobs,
        tell=lambda said: console.print(said, soft_wrap=True),
    )
    if result.left_out:
        console.print(in_words(result.left_out), soft_wrap=True)
    if not dry_run:
        said = f"{result.bytes_fetched:,} bytes fetched" if result.files_fetched else "nothing to fetch"
        console.print(f"{out} is complete: {said}, {result.seconds:.1f} s", soft_wrap=True)
    finish(json, result)


@app.command(group=TRAINING, sort_key=10)
@answers("bytegolf.data.results:Prepared")
def prepare(
    *sources: Annotated[
        str,
        Parameter(
            help="Text files and .jsonl, each also as .gz, .xz, .bz2 or .zst; .parquet; folders of these; - or -.jsonl "
            "for stdin; corpus:chinese, corpus:code, corpus:dna or corpus:encyclopedia; shards:FOLDER, token shards to "
            "decode; none = the default corpus.",
            allow_leading_hyphen=True,
        ),
    ],
    out: Annotated[Path, Parameter(help="The data folder to write.")],
    tokenizer: Annotated[
        str, Parameter(help="byte260, byte256, sp1024 (or spN) or a SPECS.json; several with commas between.")
    ] = "byte260",
    val: Annotated[
        str | None,
        Parameter(
            help="Validation split: first:K, hash:FRACTION, group:FRACTION or groups:A,B (a comma in a name: \\,); by "
            "default hash:0.05, and a named corpus' own."
        ),
    ] = None,
    cut: Annotated[
        int,
        Parameter(help="Cut plain texts into documents of about so many bytes; 0 = a file is one.", validator=COUNT),
    ] = 0,
    field: Annotated[
        str, Parameter(help="Field or column that holds the text; meta.text is one inside of another.")
    ] = "text",
    group_field: Annotated[str | None, Parameter(help="Field or column that holds the group.")] = None,
    workers: Annotated[int, Parameter(help="Processes that encode; 0 = one per core.", validator=COUNT)] = 0,
    ray: Annotated[bool, Parameter(help="Encode on a Ray cluster that sees the sources under these paths.")] = False,
    json: Json = False,
) -> None:
    """Turn documents into token shards, validation split included.

    Example: bytegolf prepare --out data/default
    Example: bytegolf prepare books/ a.jsonl --out data/mine --tokenizer sp1024
    Example: bytegolf prepare corpus:chinese --out data/chinese
    Example: bytegolf prepare one.txt --out data/one --cut 20000
    """
    from bytegolf.data.dataset import LOCK, MANIFEST, UNFINISHED, data_summary
    from bytegolf.data.prepare import prepare as run
    from bytegolf.data.results import Prepared
    from bytegolf.files import clear_leftovers, only_one
    from bytegolf.folders import LeftOut, in_words

    busy = f"another `bytegolf prepare` or `fetch` is at work in {out}: wait for it, or choose another --out"
    with only_one(out / LOCK, busy):
        clear_leftovers(out / MANIFEST, out / UNFINISHED)
        manifest = run(
            sources,
            out,
            tokenizer,
            val,
            text_field=field,
            group_field=group_field,
            cut=cut,
            workers=workers,
            ray=ray,
        )
        summary = data_summary(out)
    console = screen(json)
    left_out = [LeftOut(**one) for one in manifest["left_out"]]
    if left_out:
        console.print(in_words(left_out), soft_wrap=True)
    for entry in manifest["tokenizers"]:
        asked = (entry.get("spec") or {}).get("vocab_size", entry.get("vocab_size"))
        if asked != entry.get("vocab_size"):
            console.print(
                f"{entry['name']}: the tokenizer has {entry['vocab_size']:,} ids and not {asked:,}: the text gave no "
                f"more; set model.vocab_size={entry['vocab_size']} to train with it",
                soft_wrap=True,
            )
    for name, stats in summary.items():
        if "docs_train" not in stats:  # fetched, and not all of it
            continue
        console.print(
            f"{name}: {stats['tokens_train']:,} training and {stats['tokens_val']:,} validation tokens from "
            f"{stats['docs_train']:,} + {stats['docs_val']:,} documents in {out}",
            soft_wrap=True,
        )
    finish(json, Prepared(str(out), manifest["split"], summary, left_out))
