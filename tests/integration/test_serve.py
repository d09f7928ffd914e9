"""The server's interface: what it answers is what the model answers, and what it refuses, it refuses in words."""

from __future__ import annotations

import base64
import json
import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import TinyRun, text

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
testclient = pytest.importorskip("starlette.testclient")

from bytegolf.tools.serve.guard import Guard  # noqa: E402
from bytegolf.tools.serve.refusals import RefusedError  # noqa: E402
from bytegolf.tools.serve.routes import application  # noqa: E402
from bytegolf.tools.serve.served import Collection  # noqa: E402
from bytegolf.tools.serve.worker import Worker  # noqa: E402

TEXT = "The people of the café, a treaty of peace.\nThe naïve congress."
LIMIT = 4000


@pytest.fixture(scope="module")
def models(tiny_run: TinyRun, two_level_run: TinyRun, subword_run: TinyRun, flat_run: TinyRun) -> Collection:
    runs = (tiny_run, two_level_run, subword_run, flat_run)
    return Collection.open([run.folder for run in runs], tiny_run.data, limit=LIMIT)


@pytest.fixture(scope="module")
def client(models: Collection) -> Iterator[Any]:
    with testclient.TestClient(application(models, Worker()), base_url="http://localhost:8000") as found:
        yield found


def shorts(packed: str) -> np.ndarray[Any, Any]:
    found = np.frombuffer(base64.b64decode(packed), "<u2").astype(np.float64)
    return np.where(found == 65535, np.nan, found)


def flags(packed: str) -> list[int]:
    return np.flatnonzero(np.frombuffer(base64.b64decode(packed), np.uint8)).tolist()


def test_models_are_listed(client: Any, models: Collection) -> None:
    found = client.get("/v1/models").json()
    assert [one["id"] for one in found["data"]] == list(models.models) == ["hnet", "two", "subwords", "flat"]
    assert [one["levels"] for one in found["data"]] == [1, 2, 1, 0]
    assert [one["compresses"] for one in found["data"]] == [True, True, False, True]
    assert found["reference"] == "sp400"
    assert client.get("/v1/models/two").json()["id"] == "two"
    assert client.get("/v1/models/none").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("name", ["hnet", "two", "subwords", "flat"])
def test_segment_and_score_are_the_models(client: Any, models: Collection, name: str) -> None:
    model = models.named(name).model
    cut = client.post("/segment", json={"model": name, "text": TEXT}).json()
    assert [level["boundaries"] for level in cut["levels"]] == [
        model.boundaries(TEXT, level) for level in range(model.levels)
    ]
    assert [level["chunks"] for level in cut["levels"]] == [model.chunks(TEXT, level) for level in range(model.levels)]
    scored = client.post("/score", json={"model": name, "text": TEXT}).json()
    own = model.score(TEXT)
    assert scored["bpb"] == pytest.approx(own.bpb, abs=1e-4)
    assert scored["nats"] == pytest.approx(own.nats, rel=1e-4)
    assert sum(scored["surprisal"]) == pytest.approx(own.nats / math.log(2), rel=1e-3)
    assert {"xz -9e", "zstd --ultra -22"} <= {one["name"] for one in scored["compressors"]}
    for one in scored["compressors"]:
        assert one["bpb"] == pytest.approx(8 * one["bytes"] / len(TEXT.encode()))


@pytest.mark.parametrize("name", ["hnet", "two", "subwords", "flat"])
def test_what_the_page_reads(client: Any, models: Collection, name: str) -> None:
    served = models.named(name)
    reading = served.model.read(TEXT)
    found = client.post("/read", json={"model": name, "text": TEXT}).json()
    assert found["bytes"] == len(reading.data)
    np.testing.assert_allclose(shorts(found["bits"]) / 1000, reading.bits, atol=2e-3)
    for level, own in zip(found["levels"], reading.levels, strict=True):
        assert flags(level["boundary"]) == np.flatnonzero(own.boundary).tolist()
        np.testing.assert_allclose(shorts(level["p"]) / 10000, own.p, atol=2e-4)
    ids = shorts(found["expected"]["ids"]).reshape(-1, found["expected"]["k"]).astype(int)
    p = shorts(found["expected"]["p"]).reshape(ids.shape) / 10000
    assert (np.diff(p) <= 0).all()
    if name == "subwords":
        assert len(flags(found["tokens"])) == len(ids) - 1
        assert found["expected"]["pieces"]
        return
    expected = np.exp(served.model.log_probs(TEXT))
    assert len(ids) == len(TEXT.encode()) + 1, "there is a row for what comes next"
    for row, known in zip(ids[:-1], expected, strict=True):
        bytes_ = row[row >= 4] - 4
        assert known[bytes_[0]] == pytest.approx(known.max(), abs=1e-5)
    assert flags(found["reference"])[:1] == [0]
    # from a byte on: the end of the same
    part = client.post("/read", json={"model": name, "text": TEXT, "from": 20}).json()
    assert (part["from"], part["computed"]) == (20, 0)
    np.testing.assert_array_equal(shorts(part["bits"]), shorts(found["bits"])[20:])
    np.testing.assert_array_equal(shorts(part["expected"]["ids"]), ids[20:].ravel())


def test_any_bytes_can_be_read_and_none(client: Any) -> None:
    odd = base64.b64encode(b"\xff\x00caf\xc3").decode()
    assert client.post("/read", json={"base64": odd}).json()["bytes"] == 6
    assert client.post("/segment", json={"base64": odd}).json()["levels"][0]["chunks"]
    empty = client.post("/read", json={"text": ""}).json()
    assert (empty["bytes"], empty["bpb"], len(shorts(empty["expected"]["ids"]))) == (0, None, empty["expected"]["k"])
    assert client.post("/segment", json={"text": ""}).json()["levels"] == [{"boundaries": [], "chunks": [], "p": []}]
    refused = client.post("/segment", json={"base64": odd, "model": "subwords"})
    assert refused.status_code == 400
    assert "UTF-8" in refused.json()["error"]["message"]


def test_files_come_back(client: Any, models: Collection) -> None:
    content = text(180).encode() + bytes(range(128, 256))
    packed = client.post("/compress?model=hnet", content=content)
    assert packed.content == models.named("hnet").model.compress(content)
    assert client.post("/decompress?model=hnet", content=packed.content).content == content
    events = client.post("/compress?model=hnet&events=1", content=content).text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert base64.b64decode(json.loads(events[-2][6:])["base64"]) == packed.content
    assert client.post("/decompress?model=two", content=packed.content).status_code == 400, "another model's"
    assert client.post("/decompress?model=hnet", content=content).status_code == 400, "no compressed file"
    assert client.post("/compress?model=subwords", content=content).status_code == 400
    failed = client.post("/compress?model=subwords&events=1", content=content).text.split("\n\n")
    assert "byte260" in json.loads(failed[-3][6:])["error"]["message"]
    with pytest.raises(RefusedError, match="100"):  # what comes out is limited as well
        list(models.named("hnet").decompressed(packed.content, 100, lambda done: None))


def test_the_refusals(client: Any) -> None:
    def refused(status: int, path: str, *, param: str | None = None, **sent: Any) -> str:
        answer = client.post(path, **sent)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param
        return str(error["message"])

    refused(413, "/read", json={"text": "a" * (LIMIT + 1)})
    assert f"{LIMIT:,}" in refused(413, "/segment", content=b"x" * 10_000_000)
    refused(413, "/compress", content=b"x" * (LIMIT + 1))
    refused(413, "/v1/completions", param="prompt", json={"prompt": ["a" * LIMIT, "b"]})
    refused(400, "/v1/completions", param="temperature", content=b'{"temperature": NaN}')
    refused(400, "/v1/completions", param="top_p", content=b'{"top_p": -1e999}')
    refused(400, "/segment", content=b"{")
    refused(400, "/segment", content=b"[" * 20_000)
    refused(400, "/segment", content=b"[]")
    refused(400, "/segment", content=b'{"text": "\xff"}')
    refused(400, "/segment", param="text", json={})
    refused(400, "/segment", param="text", content=b'{"text": "\\ud800"}')
    refused(400, "/segment", param="base64", json={"base64": "?"})
    refused(400, "/segment", param="texts", json={"texts": "a"})
    refused(404, "/segment", param="model", json={"text": "a", "model": "gpt"})
    refused(405, "/v1/models", json={})
    assert "/openapi.json" in refused(404, "/nothing", json={})


def test_who_may_ask(models: Collection) -> None:
    app = application(models, Worker(), listens="0.0.0.0", token="secret", names=["lab.example"])
    with testclient.TestClient(app, base_url="http://192.168.1.7:8000") as client:

        def status(token: str = "secret", path: str = "/v1/models", **headers: str) -> int:
            return int(client.get(path, headers={"authorization": f"Bearer {token}", **headers}).status_code)

        assert status() == 200
        assert status("wrong") == status("") == 401
        assert status("wrong", "/health") == status("", "/openapi.json") == 200
        assert status(host="lab.example:8000") == 200
        assert status(host="evil.example") == status(host="[") == 403, "a rebound name"
        assert status(origin="http://evil.example") == status(origin="null") == status(origin="http://[") == 403
        assert status(origin="http://192.168.1.7:8000") == 200
        assert status(**{"sec-fetch-site": "cross-site"}) == 403
    local = Guard(app, "127.0.0.1")
    known = {host: local.knows(host) for host in ("localhost:1", "127.0.0.1:8000", "[::1]:8000", "127.9.9.9")}
    assert all(known.values()), known
    assert not any(local.knows(host) for host in ("evil.example", "192.168.1.7", "localhost.evil.example", ""))


def complete(client: Any, **asked: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def test_completions_are_the_models(client: Any, models: Collection) -> None:
    asked: dict[str, Any] = {"model": "hnet", "prompt": "The ", "temperature": 0.9, "top_p": 0.8, "seed": 5}
    found = complete(client, **asked, max_tokens=40)
    own = models.named("hnet").model.generate("The ", 40, 0.9, 0.8, 5)
    (choice,) = found["choices"]
    assert choice["text"] == own
    assert choice["finish_reason"] in ("length", "stop")
    assert found["usage"]["prompt_tokens"] == 4
    assert found["usage"]["total_tokens"] == 4 + found["usage"]["completion_tokens"]
    assert complete(client, **asked, max_tokens=40, n=2)["choices"][0]["text"] == own
    several = complete(client, **{**asked, "prompt": ["The ", "A "]}, max_tokens=8)["choices"]
    assert [one["index"] for one in several] == [0, 1]
    assert [one["text"] for one in several] == [own[:0] + several[0]["text"], several[1]["text"]]
    ids = models.named("hnet").model.tokenizer.encode("The ").tolist()
    assert complete(client, **{**asked, "prompt": ids}, max_tokens=40)["choices"][0]["text"] == own
    assert len(complete(client, model="subwords", prompt="The ", max_tokens=5)["choices"]) == 1


def streamed(client: Any, **asked: Any) -> list[dict[str, Any]]:
    lines = client.post("/v1/completions", json={**asked, "stream": True}).text.strip().split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_streams_are_the_same_in_pieces_and_stops_are_cut_off(client: Any) -> None:
    asked = {"prompt": "The", "seed": 3, "max_tokens": 120, "temperature": 0.7}
    whole = complete(client, **asked)["choices"][0]["text"]
    pieces = streamed(client, **asked, stream_options={"include_usage": True})
    assert "".join(piece["choices"][0]["text"] for piece in pieces[:-1]) == whole
    assert pieces[-2]["choices"][0]["finish_reason"] is not None
    assert (pieces[-1]["choices"], pieces[-1]["usage"]["prompt_tokens"]) == ([], 3)
    stop = whole[10:13]
    cut = complete(client, **asked, stop=["never there at all", stop])["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    pieces = streamed(client, **asked, stop=stop)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == cut["text"]


def test_log_probabilities(client: Any, models: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytegolf.tools.serve.completions.PIECE", 4)
    model = models.named("hnet").model
    asked = {"prompt": "The café", "seed": 3, "max_tokens": 12, "logprobs": 3, "echo": True}
    (choice,) = complete(client, **asked)["choices"]
    found, data = choice["logprobs"], "The café".encode()
    assert found["tokens"][: len(data)] == ["T", "h", "e", " ", "c", "a", "f", "bytes:\\xc3", "bytes:\\xa9"]
    assert found["text_offset"][: len(data)] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert found["token_logprobs"][0] is None
    assert len(found["tokens"]) == len(data) + 12
    own = model.log_probs(data)
    known = own[range(1, len(data)), list(data[1:])]
    np.testing.assert_allclose(found["token_logprobs"][1 : len(data)], known, atol=1e-4)
    assert all(len(top) <= 3 for top in found["top_logprobs"][1:])
    only = complete(client, **{**asked, "max_tokens": 0})["choices"][0]
    assert (only["text"], only["finish_reason"]) == ("The café", "length")
    assert only["logprobs"]["token_logprobs"] == found["token_logprobs"][: len(data)]
    pieces = [piece["choices"][0]["logprobs"] for piece in streamed(client, **asked)]
    assert [one for piece in pieces for one in piece["token_logprobs"]] == found["token_logprobs"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("n", 0),
        ("n", 33),
        ("n", 10**15),
        ("max_tokens", 10**9),
        ("stream_options", {"include_usage": "no"}),
        ("logprobs", 21),
        ("stop", [""]),
        ("presence_penalty", 1),
        ("suffix", "end"),
        ("best_of", 2),
        ("prompt", [[9999]]),
        ("prompt", []),
        ("prompt", [255]),
        ("prompt", [10**30]),
        ("tools", []),
    ],
)
def test_what_completions_cannot_do_is_said(client: Any, field: str, value: Any) -> None:
    answer = client.post("/v1/completions", json={"prompt": "a", field: value})
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["type"]) == (field, "invalid_request_error")


def test_the_schema_has_every_route(client: Any) -> None:
    found = client.get("/openapi.json").json()
    assert {"/segment", "/score", "/read", "/compress", "/decompress", "/v1/completions", "/v1/models"} <= set(
        found["paths"]
    )
    parts = found["components"]["schemas"]
    assert parts["ReadRequest"]["properties"]["from"]["type"] == "integer"
    assert parts["Scored"]["properties"]["bpb"]["description"].startswith("bits per byte")
    assert set(re.findall("#/components/schemas/([A-Za-z]+)", json.dumps(found))) == set(parts)


def test_too_many_at_once(models: Collection) -> None:
    worker, gate = Worker(most_jobs=3, most_per_client=2), threading.Event()
    with testclient.TestClient(application(models, worker), base_url="http://localhost") as client:

        def blocking() -> Iterator[None]:
            gate.wait()
            yield

        jobs = [client.portal.call(worker.submit, f"other {at}", blocking()) for at in range(2)]
        one = client.portal.call(worker.submit, "testclient me", blocking())
        full = client.post("/segment", json={"text": "a"})
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        jobs.append(one)
        jobs[0].cancel()
        gate.set()
        for job in jobs[1:]:
            client.portal.call(job.result)
        assert client.post("/segment", json={"text": "a"}).status_code == 200
        assert worker.waiting == 0
        gate.clear()
        jobs = [client.portal.call(worker.submit, "testclient me", blocking()) for _ in range(2)]
        mine = client.post("/segment", json={"text": "a"}, headers={"x-client": "me"})
        assert (mine.status_code, mine.json()["error"]["type"]) == (429, "rate_limit_error")
        gate.set()


def test_stored_readings_are_bounded(tiny_run: TinyRun) -> None:
    models = Collection.open([tiny_run.folder], tiny_run.data, cache=2_000_000)
    served = models.named("")
    for at in range(40):
        served.reader.read(f"{at} {text(400, at)}".encode())
    assert 0 < served.reader.cache.used <= 2_000_000
    assert 0 < len(served.reader.cache) < 40


def test_bad_command_lines(tiny_run: TinyRun, tmp_path: Path) -> None:
    from commands import refused

    assert "name a model" in refused("serve")
    assert "no" in refused("serve", tmp_path / "none")
    assert "twice" in refused("serve", tiny_run.folder, tiny_run.folder)
    assert "cannot listen" in refused("serve", tiny_run.folder, "--host", "203.0.113.1", "--data", tiny_run.data)
