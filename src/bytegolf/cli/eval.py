"""Verbs that score an artifact."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, SCORES, Data, Json, Model, answers, app, finish, screen
from bytegolf.config import ContextName, MixConfig, SelectorName, TttConfig, from_dict, to_dict
from bytegolf.errors import BytegolfError


@Parameter(name="*")
@dataclass
class TestTime:
    """The options of test-time training; what is left out is as configured."""

    ttt: Annotated[
        Literal["off", "lora", "sgd"] | None,
        Parameter(help="Test-time training: learn from each chunk once it is scored."),
    ] = None
    ttt_chunk: Annotated[
        int | None,
        Parameter(help="Tokens scored before they are learned from; 0 = a window's, 256 with --mix.", validator=COUNT),
    ] = None
    ttt_steps: Annotated[
        int | None, Parameter(help="Updates after each chunk.", validator=validators.Number(gte=1))
    ] = None
    ttt_reset: Annotated[
        Literal["document", "never"] | None, Parameter(help="Forget at each document, or carry on.")
    ] = None
    ttt_matrices: Annotated[Literal["all", "attention", "mlp"] | None, Parameter(help="Which matrices learn.")] = None
    ttt_lr: Annotated[
        float | None, Parameter(help="Learning rate of the adapters (lora) or the matrices (sgd).", validator=COUNT)
    ] = None
    ttt_rank: Annotated[
        int | None, Parameter(help="lora: rank of the adapters.", validator=validators.Number(gte=1))
    ] = None
    ttt_documents: Annotated[
        int | None, Parameter(help="lora: documents that go through at once.", validator=validators.Number(gte=1))
    ] = None
    ttt_rms_lr: Annotated[
        float | None,
        Parameter(help="sgd: rate of the matrices in units of their gradients' size; 0 = plain.", validator=COUNT),
    ] = None
    ttt_ngram_lr: Annotated[
        float | None, Parameter(help="sgd: learning rate of the n-gram tables.", validator=COUNT)
    ] = None

    def over(self, configured: TttConfig) -> TttConfig:
        """The configuration with what was given on the command line; raises BytegolfError for what does not go with
        its mode.
        """
        given = {name.removeprefix("ttt_"): value for name, value in vars(self).items() if value is not None}
        mode = given.pop("ttt", configured.mode)
        others = {"rank", "documents"} if mode == "sgd" else {"rms_lr", "ngram_lr"} if mode == "lora" else set(given)
        for name in sorted(others & given.keys()):
            raise BytegolfError(
                f"--ttt-{name.replace('_', '-')} means nothing with test-time training {mode}: leave it out, or choose "
                f"--ttt {'lora' if mode == 'sgd' else 'sgd' if mode == 'lora' else 'lora or --ttt sgd'}"
            )
        if "lr" in given:
            given[f"{mode}_lr"] = given.pop("lr")
        return dataclasses.replace(configured, mode=mode, **given)


@Parameter(name="*")
@dataclass
class Mixed:
    """The options of mixing; what is left out is as configured."""

    mix: Annotated[
        bool | None,
        Parameter(help="Mix the model's distribution of each byte with those of contexts.", negative="--no-mix"),
    ] = None
    mix_reset: Annotated[
        Literal["document", "never"] | None, Parameter(help="Forget contexts at each document, or carry on.")
    ] = None
    mix_megabytes: Annotated[int | None, Parameter(help="Memory for contexts.", validator=validators.Number(gte=1))] = (
        None
    )
    mix_primer: Annotated[
        bool | None,
        Parameter(help="Read the artifact's primer first, if it has one.", negative="--no-mix-primer"),
    ] = None
    mix_without: Annotated[
        list[str] | None, Parameter(help="Contexts and selectors to leave out.", consume_multiple=True, negative=())
    ] = None
    mix_also: Annotated[
        list[str] | None, Parameter(help="Contexts and selectors to add.", consume_multiple=True, negative=())
    ] = None

    def over(self, configured: MixConfig) -> MixConfig:
        """The configuration with what was given on the command line; raises BytegolfError for unknown names, and for
        options without mixing.
        """
        on = configured.on if self.mix is None else self.mix
        others = {name: value for name, value in vars(self).items() if name != "mix" and value is not None}
        if others and not on:
            raise BytegolfError(
                f"--{next(iter(others)).replace('_', '-')} means nothing without mixing: give --mix too"
            )
        without, also = set(self.mix_without or ()), list(self.mix_also or ())
        known = {"contexts": get_args(ContextName), "selectors": get_args(SelectorName)}
        for name in (*without, *also):
            if not any(name in names for names in known.values()):
                choice = "; ".join(f"{what}: {', '.join(names)}" for what, names in known.items())
                raise BytegolfError(f"mixing knows no context or selector {name!r} ({choice})")
        raw = to_dict(configured) | {"on": on}
        for what, names in known.items():
            kept = [name for name in raw[what] if name not in without]
            raw[what] = kept + [name for name in also if name in names and name not in kept]
        raw |= {name.removeprefix("mix_"): value for name, value in others.items() if name in _NUMBERS}
        return from_dict(MixConfig, raw, "eval.mix")


_NUMBERS = ("mix_reset", "mix_megabytes", "mix_primer")


@app.command(name="eval", group=SCORES, sort_key=30)
@answers("bytegolf.api.results:Evaluation")
def evaluate(
    model: Model,
    /,
    *,
    data: Data = None,
    stride: Annotated[
        int | None,
        Parameter(help="New tokens per window; 0 = windows do not overlap. By default as configured.", validator=COUNT),
    ] = None,
    limit: Annotated[
        int,
        Parameter(help="Score about this many tokens only: a subset, labelled as one. 0 = all.", validator=COUNT),
    ] = 0,
    length: Annotated[
        int, Parameter(help="Tokens that a window reads; 0 = as in training (train.seq_len).", validator=COUNT)
    ] = 0,
    receptive_field: Annotated[
        int, Parameter(help="Positions (or chunks) that attention to everything sees; 0 = everything.", validator=COUNT)
    ] = 0,
    one_pass: Annotated[
        bool, Parameter(help="Not the windows of --stride, but one pass that stands for them.")
    ] = False,
    batch: Annotated[int, Parameter(help="Windows worked out at a time; 0 = as configured.", validator=COUNT)] = 0,
    capacity: Annotated[
        Literal["exact", "bucketed", "fixed"] | None, Parameter(help="Room for chunks. By default as configured.")
    ] = None,
    capacity_divisor: Annotated[
        float | None,
        Parameter(help="Of a fixed capacity, 1 or more. By default as configured.", validator=validators.Number(gte=1)),
    ] = None,
    tail: Annotated[
        Literal["auto", "drop", "score"],
        Parameter(help="Tokens that fill no window: auto drops them unless windows overlap, as published."),
    ] = "auto",
    test_time: TestTime | None = None,
    mixed: Mixed | None = None,
    precision: Annotated[Literal["auto", "bf16", "fp32"], Parameter(help="Compute dtype.")] = "auto",
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Score an artifact in bits per byte.

    It is read from disk as it would be shipped, and scored over the full
    validation split unless --limit is given. With --stride each window of
    train.seq_len tokens is scored on its last ones only. What windows have in
    common is then computed once, which changes no loss by more than rounding.

    With --one-pass the text is read once instead: in long windows, in which what
    attends to everything sees as far as in those of --stride (counted on some of
    them). These are not the losses of sliding windows, but nearly their BPB (so
    far within 0.0001) for a fraction of the work. --length and --receptive-field
    do the same by hand.

    With --ttt the model learns from each chunk of text once that is scored, and
    from no token before; every token is scored once, and each document read from
    its beginning unless --ttt-reset never.

    With --mix the model's distribution of each byte is mixed, bit by bit, with
    those of contexts of the text so far: what learns does so from scored bytes
    only, and every distribution sums to 1. It goes together with all the others.

    Example: bytegolf eval runs/cpu-demo --stride 512
    Example: bytegolf eval runs/cpu-demo --stride 64 --one-pass
    Example: bytegolf eval runs/cpu-demo --length 16384 --stride 14336 --receptive-field 171
    Example: bytegolf eval runs/cpu-demo --ttt sgd
    Example: bytegolf eval runs/cpu-demo --mix
    """
    from bytegolf.api.model import load
    from bytegolf.cli import show
    from bytegolf.progress import Reporter

    if one_pass and (length or receptive_field):
        raise BytegolfError("--one-pass finds length and receptive field itself: leave those two options out")
    loaded = load(model, data=data, device=device, precision=precision)
    changes = {"stride": stride, "capacity": capacity, "capacity_divisor": capacity_divisor}
    mode = loaded.mode(
        **{name: value for name, value in changes.items() if value is not None},
        ttt=(test_time or TestTime()).over(loaded.config.eval.ttt),
        mix=(mixed or Mixed()).over(loaded.config.eval.mix),
        tail=tail,
        **({"seq_len": length} if length else {}),
        **({"batch": batch} if batch else {}),
        **({"receptive_field": (receptive_field,)} if receptive_field else {}),
    )
    with Reporter() as reporter:
        result = loaded.evaluate(data, mode, limit=limit, one_pass=one_pass, reporter=reporter)
    show.score(screen(json), result)
    finish(json, result)
