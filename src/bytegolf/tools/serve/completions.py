"""/v1/completions: texts continued, in the form that OpenAI's clients expect.

A token of a byte model is a byte. Bytes that make no character by themselves appear among the tokens of ``logprobs`` as
OpenAI writes them, ``bytes:\\xe2\\x82``; the text itself comes in whole characters.
"""

from __future__ import annotations

import codecs
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bytegolf.data.tokenizer import Tokenizer
from bytegolf.tools.serve.answers import CompletionRequest
from bytegolf.tools.serve.refusals import RefusedError
from bytegolf.tools.serve.served import Served
from bytegolf.tools.serve.worker import Job

MOST_CHOICES = 32
"""Continuations in one answer: as many as are drawn side by side."""

MOST_TOKENS = 4096
MOST_PROMPT = 65_536
"""Bytes of all prompts together: a prompt is read in one call, during which nobody else is answered."""

MOST_ECHOED = 16_384
"""The same where log-probabilities of the prompts are wanted, which are a hundred times as long."""

PIECE = 1024
"""Tokens of a prompt that are looked at together where its log-probabilities are wanted."""

MOST_LOGPROBS = 20
MOST_STOPS = 4
SUBWORD_BYTES = 16
"""Bytes that a token of a subword model is given room for."""


@dataclass(frozen=True)
class Order:
    """A request that was checked."""

    served: Served
    prompts: list[str]
    """each as often as it is to be continued"""
    seeds: list[int]
    stops: list[str]
    asked: CompletionRequest
    usage: bool
    """whether a stream ends with the usage"""
    id: str
    created: int

    @staticmethod
    def of(asked: CompletionRequest, served: Served, limit: int) -> Order:
        """Raises RefusedError for what cannot be had."""
        for name, wrong, why in (
            ("suffix", bool(asked.suffix), "a causal model does not know what comes behind"),
            ("presence_penalty", asked.presence_penalty != 0, "penalties are not supported: leave it at 0"),
            ("frequency_penalty", asked.frequency_penalty != 0, "penalties are not supported: leave it at 0"),
            ("logit_bias", bool(asked.logit_bias), "it is not supported"),
            ("best_of", asked.best_of not in (None, asked.n), "only n itself is supported"),
            ("n", not 1 <= asked.n <= MOST_CHOICES, f"give 1 to {MOST_CHOICES}"),
            ("max_tokens", not 0 <= asked.max_tokens <= MOST_TOKENS, f"give 0 to {MOST_TOKENS}"),
            ("temperature", not 0 <= asked.temperature <= 100, "give 0 (always the likeliest token) to 100"),
            ("top_p", not 0 < asked.top_p <= 1, "give a share above 0 and up to 1"),
            ("logprobs", not 0 <= (asked.logprobs or 0) <= MOST_LOGPROBS, f"give 0 to {MOST_LOGPROBS}"),
            ("seed", not 0 <= (asked.seed or 0) < 1 << 62, "give 0 or more"),
        ):
            if wrong:
                raise RefusedError(400, f"{name}: {why}", param=name)
        prompts = [prompt for prompt in _prompts(asked.prompt, served) for _ in range(asked.n)]
        if len(prompts) > MOST_CHOICES:
            said = f"{len(prompts)} continuations are asked for, and {MOST_CHOICES} are made at once: ask for fewer"
            raise RefusedError(400, said, param="n")
        size = sum(len(prompt.encode("utf-8", "surrogatepass")) for prompt in prompts)
        most = min(limit, MOST_ECHOED if asked.echo and asked.logprobs is not None else MOST_PROMPT)
        if size > most:
            said = f"the prompts have {size:,} bytes, and {most:,} are taken: send their end"
            raise RefusedError(413, said, param="prompt", code="too_large")
        stops = [asked.stop] if isinstance(asked.stop, str) else list(asked.stop or [])
        if len(stops) > MOST_STOPS or "" in stops:
            raise RefusedError(400, f"stop: give up to {MOST_STOPS} texts, none of them empty", param="stop")
        seed = secrets.randbelow(1 << 32) if asked.seed is None else asked.seed
        return Order(
            served,
            prompts,
            [seed + at for at in range(len(prompts))],
            stops,
            asked,
            bool((asked.stream_options or {}).get("include_usage")),
            f"cmpl-{uuid.uuid4().hex}",
            int(time.time()),
        )

    def envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An answer, or a piece of one."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": self.served.model.sha256[:16],
            "choices": choices,
        }


def _prompts(given: Any, served: Served) -> list[str]:
    """One text or several, of texts or token ids."""
    many = given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]
    if not many:
        raise RefusedError(400, "there is no prompt: give a text", param="prompt")
    found = []
    for prompt in many:
        if isinstance(prompt, list):
            last = served.model.tokenizer.vocab_size - 1
            if not all(0 <= token <= last for token in prompt):
                raise RefusedError(400, f"token ids of {served.name} go from 0 to {last}", param="prompt")
            ids = np.array(prompt, np.int64)
            try:
                prompt = served.model.tokenizer.decode(ids).decode("utf-8")
            except UnicodeDecodeError as error:
                raise RefusedError(400, f"the token ids are no UTF-8 (byte {error.start})", param="prompt") from None
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            said = f"the prompt has half a surrogate pair at character {error.start}: give text"
            raise RefusedError(400, said, param="prompt") from None
        found.append(prompt)
    return found


@dataclass
class _Token:
    """A token of an answer."""

    id: int
    piece: bytes
    at: int
    """characters of the answer before it"""
    log_p: float | None
    top: dict[str, float] | None


@dataclass
class _Choice:
    """One continuation as it grows."""

    index: int
    prompt: str
    text: str = ""
    """what is decided to be the answer's"""
    held: str = ""
    """what may be the beginning of a stop"""
    tokens: list[_Token] = field(default_factory=list)
    """not sent yet"""
    count: int = 0
    """tokens drawn"""
    finish: str | None = None
    decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace"))

    def add(self, piece: bytes, stops: list[str]) -> str:
        """Take a token's bytes; the text that is new and can be sent."""
        self.held += self.decoder.decode(piece)
        hits = [at for stop in stops if (at := self.held.find(stop)) >= 0]
        if hits:
            self.finish, new, self.held = "stop", self.held[: min(hits)], ""
        else:
            keep = max((_overlap(self.held, stop) for stop in stops), default=0)
            cut = len(self.held) - keep
            new, self.held = self.held[:cut], self.held[cut:]
        self.text += new
        return new

    def rest(self, finish: str) -> str:
        """The end: what was held back for a stop that did not come. Half a character is left out."""
        new, self.held = self.held, ""
        self.text += new
        self.finish = finish
        return new

    def logprobs(self, wanted: int | None) -> dict[str, Any] | None:
        """Of the tokens that were not sent yet and belong to the text, as OpenAI has it."""
        if wanted is None:
            return None
        sent = [token for token in self.tokens if token.at < len(self.text) or self.finish == "length"]
        self.tokens = [token for token in self.tokens if token not in sent]
        return {
            "tokens": [_shown(token.piece) for token in sent],
            "token_logprobs": [token.log_p for token in sent],
            "top_logprobs": [token.top for token in sent] if wanted else None,
            "text_offset": [token.at for token in sent],
        }


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of ``text`` may be the beginning of ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)


def _shown(piece: bytes) -> str:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _top(tokenizer: Tokenizer, log_p: Tensor, count: int) -> dict[str, float]:
    """The likeliest tokens by what they stand for; one that ends the text is ``<|endoftext|>``."""
    found = log_p.topk(min(count, len(log_p)))
    return {
        _shown(tokenizer.decode([token])) or "<|endoftext|>": round(value, 6)
        for token, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    }


def drawing(order: Order) -> Generator[dict[str, Any] | None, None, dict[str, int]]:
    """The pieces of the answer, as choices (None: only a pause); at last the usage."""
    asked, served = order.asked, order.served
    tokenizer, wanted = served.model.tokenizer, asked.logprobs
    choices = [_Choice(index, prompt) for index, prompt in enumerate(order.prompts)]
    for choice in choices:
        if asked.echo:
            yield from _echo(choice, served, wanted)
    latest: dict[int, tuple[int, Tensor]] = {}

    def watch(row: int, token: int, logits: Tensor) -> None:
        latest[row] = (token, logits)

    size = asked.max_tokens * (1 if served.bytewise else SUBWORD_BYTES)
    drawn = served.model.generate_bytes(
        order.prompts, order.seeds, size, asked.temperature, asked.top_p, watch if wanted is not None else None
    )
    for row, piece in drawn:
        choice = choices[row]
        if choice.finish:
            continue
        choice.count += 1
        if wanted is not None:
            token, logits = latest.pop(row)
            log_p = torch.log_softmax(logits.double(), -1)
            top = _top(tokenizer, log_p, wanted) if wanted else None
            at = len(choice.text) + len(choice.held)
            choice.tokens.append(_Token(token, piece, at, round(float(log_p[token]), 6), top))
        new = choice.add(piece, order.stops)
        if not choice.finish and choice.count == asked.max_tokens:
            new += choice.rest("length")
        yield _piece(choice, new, wanted)
        if all(one.finish for one in choices):
            drawn.close()  # type: ignore[attr-defined]
            break
    for choice in choices:
        if not choice.finish:
            yield _piece(choice, choice.rest("length" if asked.max_tokens == 0 else "stop"), wanted)
    read = sum(len(tokenizer.encode(prompt)) for prompt in order.prompts[:: asked.n])
    drawn_count = sum(choice.count for choice in choices)
    return {"prompt_tokens": read, "completion_tokens": drawn_count, "total_tokens": read + drawn_count}


def _echo(choice: _Choice, served: Served, wanted: int | None) -> Generator[dict[str, Any] | None, None, None]:
    """The prompt as the beginning of the answer, with what it cost."""
    if wanted is not None and choice.prompt:
        tokenizer = served.model.tokenizer
        ids = tokenizer.encode(choice.prompt)
        module = served.model.module
        seen = torch.from_numpy(np.concatenate(([tokenizer.BOS], ids[:-1])).astype(np.int64)).to(served.model.device)
        state = module.start(1, len(ids))
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        at, previous = 0, tokenizer.BOS
        for start in range(0, len(ids), PIECE):
            with torch.inference_mode():
                logits = module.extend(seen[None, start : start + PIECE], state)[0].double().cpu()
            log_ps = torch.log_softmax(logits, -1)
            for token, log_p in zip(ids[start : start + PIECE].tolist(), log_ps, strict=True):
                piece = tokenizer.decode([token], previous)
                first = not choice.tokens
                value = None if first else round(float(log_p[token]), 6)  # OpenAI says nothing of the first
                top = None if first or not wanted else _top(tokenizer, log_p, wanted)
                choice.tokens.append(_Token(token, piece, at, value, top))
                at, previous = at + len(decoder.decode(piece)), token
            yield None
    choice.text = choice.prompt
    yield _piece(choice, choice.prompt, wanted)


def _piece(choice: _Choice, new: str, wanted: int | None) -> dict[str, Any]:
    logprobs = choice.logprobs(wanted)
    return {"index": choice.index, "text": new, "logprobs": logprobs, "finish_reason": choice.finish}


async def whole(order: Order, job: Job[dict[str, int]]) -> dict[str, Any]:
    """The answer in one."""
    found: dict[int, dict[str, Any]] = {}
    async for piece in job.pieces():
        known = found.setdefault(piece["index"], {**piece, "text": "", "logprobs": None})
        known["text"] += piece["text"]
        known["finish_reason"] = piece["finish_reason"]
        if piece["logprobs"]:
            known["logprobs"] = _joined(known["logprobs"], piece["logprobs"])
    usage = await job.result()
    return {**order.envelope([found[index] for index in sorted(found)]), "usage": usage}


def _joined(one: dict[str, Any] | None, two: dict[str, Any]) -> dict[str, Any]:
    if one is None:
        return two
    return {key: one[key] + two[key] if two[key] is not None else None for key in two}


async def stream(order: Order, job: Job[dict[str, int]]) -> AsyncIterator[dict[str, Any]]:
    """The answer piece by piece."""
    async for piece in job.pieces():
        if piece["text"] or piece["finish_reason"] or (piece["logprobs"] or {}).get("tokens"):
            yield order.envelope([piece])
    usage = await job.result()
    if order.usage:
        yield {**order.envelope([]), "usage": usage}
