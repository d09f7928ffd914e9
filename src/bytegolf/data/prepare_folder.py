"""A data folder while `prepare` works in it: what stays there, what is begun, and the manifest at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bytegolf.data.export import Export
from bytegolf.data.manifest import DATASET_PREFIX, DIGEST, MANIFEST, mark_unfinished, read_manifest, unfinished
from bytegolf.data.sources import Source
from bytegolf.data.specs import TokenizerSpec
from bytegolf.data.split import Split
from bytegolf.errors import BytegolfError
from bytegolf.files import make_folder, write_json


@dataclasses.dataclass(frozen=True)
class Kept:
    """What stays of a folder's manifest: other tokenizers over the same documents."""

    manifest: dict[str, Any]
    datasets: list[dict[str, Any]]
    tokenizers: list[dict[str, Any]]


def begin(out: Path, source: Source, split: Split, specs: list[TokenizerSpec]) -> Kept:
    """Mark the data sets of ``specs`` in ``out`` as unfinished; raise rather than touch what is not theirs."""
    make_folder(out)
    names, half = [DATASET_PREFIX + spec.suffix for spec in specs], unfinished(out)
    kept = Kept({}, [], [])
    if (out / MANIFEST).exists():
        old = read_manifest(out)
        published = "corpus" not in old  # fetched: its statistics are compared in the end
        if not published and (old["corpus"], old.get("split")) != (source.description, str(split)):
            raise BytegolfError(f"{out} holds data from other documents or with another split: choose another --out")
        remade = {spec.name for spec in specs}
        datasets = [d for d in old["datasets"] if _tokenizer_of(d) not in remade and d.get("name") not in half]
        stay = {_tokenizer_of(entry) for entry in datasets}
        tokenizers = [entry for entry in old["tokenizers"] if entry.get("name") in stay]
        kept = Kept(old, datasets, tokenizers)
        files = {entry.get("name") for entry in datasets} | {entry.get("model_path") for entry in tokenizers}
        for spec, name in zip(specs, names, strict=True):
            if taken := files & {name, f"tokenizers/{spec.model_prefix}.model"}:
                raise BytegolfError(
                    f"{out} holds {', '.join(map(str, taken))} of another tokenizer than {spec.name}: give the spec "
                    "its own dataset_suffix and model_prefix, or choose another --out"
                )
    elif not half and (foreign := [name for name in names if any((out / "datasets" / name).glob("*.bin"))]):
        raise BytegolfError(
            f"{out} has shards but no {MANIFEST} ({', '.join(foreign)}), so they may be another's: delete them, or "
            "choose another --out"
        )
    mark_unfinished(out, [*names, *half])
    return kept


def write_manifest(
    out: Path, source: Source, split: Split, kept: Kept, made: Sequence[Export], digest: str
) -> dict[str, Any]:
    """Write the manifest of ``out``, and return it; raise if what stays there came from other documents."""
    training, validation = made[0].documents
    same = kept.manifest.get(DIGEST, digest) == digest and all(
        (entry.get("stats") or {}).get(key, count) == count
        for entry in kept.datasets
        for key, count in (("docs_val", validation), ("docs_total", training + validation))
    )
    if kept.datasets and not same:
        raise BytegolfError(f"the documents are not those that {out} was made from: choose another --out")
    manifest = {
        **kept.manifest,
        "version": 1,
        "corpus": source.description,
        "split": str(split),
        "docs_total": training + validation,
        DIGEST: digest,
        "datasets": kept.datasets + [export.dataset() for export in made],
        "tokenizers": kept.tokenizers + [export.entry() for export in made],
    }
    manifest.pop("documents_sha256", None)  # what earlier versions wrote instead
    write_json(out / MANIFEST, manifest)
    return manifest


def _tokenizer_of(dataset: dict[str, Any]) -> Any:
    return dataset.get("tokenizer_name", dataset.get("tokenizer"))
