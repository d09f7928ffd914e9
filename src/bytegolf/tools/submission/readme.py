"""The README of a submission: its figures, how it was made, and how to check it."""

from __future__ import annotations

import tomli_w

from bytegolf.artifact.loading import LoadedModel
from bytegolf.artifact.results import LIMIT
from bytegolf.config import to_dict
from bytegolf.tools.bundle.entry import Scored
from bytegolf.tools.bundle.script import NAME
from bytegolf.tools.submission.claims import Claims

_UNPACK = rf"""## Read it

`{NAME}` is compressed; this prints it:

```sh
sed 's/^exec\(.*\)$/print(\1.decode())/' {NAME} | python
```

"""


def readme(opened: LoadedModel, claims: Claims, found: Scored, versions: dict[str, str], packed: bool) -> str:
    """Markdown; ``found`` is what the script's `eval` said; ``packed``: the script is compressed."""
    config = opened.config
    way = f"windows of {config.train.seq_len} tokens"
    way += f", each scored on its last {config.eval.stride}" if config.eval.stride else " without overlap"
    if config.eval.ttt.mode != "off":
        way += f"; test-time training ({config.eval.ttt.mode}) on what has been scored, and on nothing else"
    if config.eval.mix.on:
        way += "; mixed with context models, which learn from what has been scored, and from nothing else"
        if primer := opened.artifact.primer if config.eval.mix.primer else None:
            way += f" but {primer.size:,} bytes of training text, which the model's file carries"
    tail = f" ({found.tokens_dropped:,} behind them fill no window)" if found.tokens_dropped else ""
    size = f"{claims.bytes_model_int8_zlib:,} model + {claims.bytes_code:,} code = {claims.bytes_total:,} of {LIMIT:,}"
    settings = {"model": to_dict(config.model), "train": to_dict(config.train), "export": to_dict(config.export)}
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"""# {claims.name}

{claims.blurb}

| | |
|---|---|
| val_bpb | **{claims.val_bpb:.6f}** over the whole validation split |
| val_loss | {claims.val_loss:.6f} nats per token |
| before quantisation | {claims.pre_quant_val_bpb:.6f} |
| scored | {found.tokens:,} tokens, {found.bytes:,} bytes{tail} |
| how | {way}, computed in {found.precision} |
| training | {claims.step_stop:,} steps in {claims.wallclock_seconds:,} s |
| bytes | {size} |

## Run it

The script needs Python and public libraries alone; it was run with {libraries}. A C++ compiler, if there is one,
makes it faster on a CPU.

```sh
python {NAME} eval --data DATA
python {NAME} train --data DATA --out FOLDER
```

`DATA` is a folder of token shards (`fineweb_val_*.bin`, `fineweb_train_*.bin`) with its tokenizer. `eval --losses
FILE.npy` writes the nats and bytes of every scored target, in the order of the text.

{_UNPACK if packed else ""}## What the score rests on

- Training reads the training split; of the validation split it takes a sample's loss from time to time, to print it.
- Each target is scored once, from the tokens before it; windows are those above.
- The script is made of bytegolf's modules and of nothing else of ours; its size is that of `{NAME}`.
- `bytegolf audit` checks this folder against the rules, by reading the script and by running it.

## Configuration

```toml
{tomli_w.dumps(settings).strip()}
```
"""
