"""What drafts by an H-Net's outer networks bring: acceptance, tokens per pass, and processor time beside plain steps.

    python benchmarks/speculation.py runs/cpu-demo

Plain generation and drafts of each length take turns over the same prompts and seeds, on one thread. "weights read"
is counted, not measured: bytes of weights that a token touches where memory is the limit (each pass of a network reads
its weights once, however many positions it takes), as a share of plain generation's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bytegolf.artifact.loading import in_fp32, load_own
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.infer.sample import generate
from bytegolf.infer.speculative import Acceptance
from bytegolf.model.hnet import HNet
from bytegolf.model.lm import LanguageModel

PROMPTS = ("Fellow citizens", "The state of the", "In the last year ", "My countrymen, ")


def sizes(model: LanguageModel) -> tuple[int, int]:
    """Parameters of the outermost stage with all that is around it (tables apart), and of its main network."""
    assert isinstance(model.network, HNet)
    inner = sum(each.numel() for each in model.network.main.parameters())
    every = sum(each.numel() for name, each in model.named_parameters() if not name.endswith("table"))
    return every - inner, inner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--drafts", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--bytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = in_fp32(load_own(options.model, device="cpu"), torch.device("cpu"))
    model, tokenizer = loaded.model, loaded.tokenizer
    assert isinstance(tokenizer, ByteTokenizer), "the drafts of byte models are counted"
    outer, inner = sizes(model)
    rows = []
    for temperature in (0.0, 0.8):
        spent: dict[int, list[float]] = {draft: [] for draft in (0, *options.drafts)}
        found = {draft: Acceptance() for draft in options.drafts}
        chunks, tokens, same = 0, 0, 0
        for turn in range(options.rounds):
            texts: dict[int, list[bytes]] = {}
            for draft in spent:
                started = time.process_time()
                texts[draft] = [
                    b"".join(
                        piece
                        for _, piece in generate(
                            model,
                            tokenizer,
                            [prompt],
                            [turn],
                            size=options.bytes,
                            temperature=temperature,
                            draft=draft,
                            acceptance=found.get(draft),
                        )
                    )
                    for prompt in PROMPTS
                ]
                spent[draft].append(time.process_time() - started)
            same += sum(texts[draft] == texts[0] for draft in options.drafts)
            for text in texts[0]:
                if not text:
                    continue
                ids = torch.tensor([[tokenizer.BOS, *tokenizer.encode_bytes(text).tolist()]])
                with torch.inference_mode():
                    chunks += int(model(ids).traces[0].boundary.sum())
                tokens += ids.shape[1]
        plain = outer + inner * chunks / tokens
        for draft in options.drafts:
            one = found[draft]
            passes = one.rounds + one.repeated
            brought = one.accepted + one.rounds
            read = (one.drafted * outer + passes * (outer + inner)) / brought
            rows.append(
                {
                    "temperature": temperature,
                    "draft": draft,
                    "acceptance": round(one.rate, 3),
                    "tokens_per_pass": round(one.tokens_per_pass, 2),
                    "time": round(statistics.median(b / a for a, b in zip(spent[0], spent[draft], strict=True)), 2),
                    "weights_read": round(read / plain, 2),
                }
            )
        print(f"temperature {temperature}: {same} of {len(options.drafts) * options.rounds} texts as without drafts")
    table = Table("temperature", "draft", "kept", "tokens a pass", "time / plain", "weights read / plain")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(markup=False).print(table)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
