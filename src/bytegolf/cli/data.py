"""Verbs that make data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bytegolf.cli.common import COUNT, Json, app, finish, screen


@app.command(sort_key=0)
def prepare(
    *sources: Annotated[
        str,
        Parameter(
            help="Text files, folders, .jsonl[.gz|.zst], .parquet; - or -.jsonl for stdin; corpus:chinese, "
            "corpus:code, corpus:dna or corpus:encyclopedia; none = the default corpus.",
            allow_leading_hyphen=True,
        ),
    ],
    out: Annotated[Path, Parameter(help="The data folder to write.")],
    tokenizer: Annotated[
        str, Parameter(help="byte260, sp1024 (or spN) or a SPECS.json; several with commas between.")
    ] = "byte260",
    val: Annotated[
        str | None,
        Parameter(
            help="Validation split: first:K, hash:FRACTION, group:FRACTION or groups:A,B; by default hash:0.05, and "
            "a named corpus' own."
        ),
    ] = None,
    cut: Annotated[
        int,
        Parameter(help="Cut plain texts into documents of about so many bytes; 0 = a file is one.", validator=COUNT),
    ] = 0,
    field: Annotated[str, Parameter(help="Field or column that holds the text.")] = "text",
    group_field: Annotated[str | None, Parameter(help="Field or column that holds the group.")] = None,
    workers: Annotated[int, Parameter(help="Threads of SentencePiece; 0 = one a core.", validator=COUNT)] = 0,
    json: Json = False,
) -> None:
    """Turn documents into token shards, validation split included.

    Example: bytegolf prepare --out data/default
    Example: bytegolf prepare books/ a.jsonl --out data/mine --tokenizer sp1024
    Example: bytegolf prepare corpus:chinese --out data/chinese
    Example: bytegolf prepare one.txt --out data/one --cut 20000

    JSON keys: out, split, datasets (by tokenizer: tokenizer, vocab_size,
    docs_total, docs_train, docs_val, and likewise files_, tokens_, bytes_ and
    original_bytes_, the last two for train and val).
    """
    from bytegolf.data.manifest import data_summary
    from bytegolf.data.prepare import prepare as run

    manifest = run(
        sources,
        out,
        tokenizer,
        val,
        text_field=field,
        group_field=group_field,
        cut=cut,
        workers=workers,
    )
    summary = data_summary(out)
    console = screen()
    for name, stats in summary.items():
        console.print(
            f"{name}: {stats['tokens_train']:,} training and {stats['tokens_val']:,} validation tokens from "
            f"{stats['docs_train']:,} + {stats['docs_val']:,} documents in {out}",
            soft_wrap=True,
        )
    finish(json, {"out": str(out), "split": manifest["split"], "datasets": summary})
