"""What `audit` says of a folder of submissions, such as the public repository's records/: counts per rule and outcome.

    python benchmarks/audit_records.py RECORDS [--json FILE]

A submission is a folder that holds a submission*.json, or nothing but files. Every broken rule is listed.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from pathlib import Path

from bytegolf.results import to_json
from bytegolf.tools.submission.audit import audit
from bytegolf.tools.submission.verdict import RULES


def submissions(folder: Path) -> list[Path]:
    """The folders of submissions at and below ``folder``."""
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if any(folder.glob("submission*.json")) or not inside:
        return [folder]
    return [one for path in inside for one in submissions(path)]


def main() -> None:
    """Audit them all and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    counts: dict[str, collections.Counter[str]] = {rule: collections.Counter() for rule in RULES}
    whole: collections.Counter[str] = collections.Counter()
    rows, broken = [], []
    started = time.perf_counter()
    for folder in submissions(given.records):
        found = audit(folder, None)
        whole[found.verdict] += 1
        rows.append({"folder": folder.name, **to_json(found)})
        for row in found.verdicts:
            counts[row.rule][row.outcome] += 1
            if row.outcome == "broken":
                broken.append(f"- `{folder.name}`: {row.rule}: {row.evidence[0]}")
    print("| rule | shown | not proved | broken |\n|---|---|---|---|")
    for rule, counted in counts.items():
        print(f"| {rule} | {counted['shown']} | {counted['not proved']} | {counted['broken']} |")
    print(f"\n{len(rows)} submissions in {time.perf_counter() - started:.0f} s: {dict(whole)}\n")
    print("\n".join(broken))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
