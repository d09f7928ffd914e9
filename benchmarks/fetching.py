"""Does a download survive being killed at any moment, from a server that fails in every way?

    python benchmarks/fetching.py --kills 200 --megabytes 8

A mirror of the published layout with made-up tokens is served on loopback. The server drops connections, answers 503
and sends wrong bits now and then (hashes are published). `bytegolf fetch` is killed with SIGKILL after a random time,
again and again, then left to finish. After each kill whatever has its name must be what was published; counted is what
the server sent, beside the size of the files: the cost of kills and faults, with what was on its way at a kill.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import table

from bytegolf.data.dataset_writer import ShardWriter

NAME, VOCABULARY = "fineweb10B_made", 1000
_COMMAND = """
import sys
from bytegolf.tools.fetch import download, mirrors
from bytegolf.cli import main
mirrors.BLOCK_BYTES, download.DELAY = 1 << 18, 0.01
sys.argv = ["bytegolf", *sys.argv[1:]]
main()
"""
"""Blocks are small enough to matter at this size."""


def make_mirror(root: Path, megabytes: float, shards: int, seed: int) -> dict[str, str]:
    """A mirror with random tokens; the SHA-256 of its files by their paths."""
    draw = np.random.default_rng(seed)
    folder = root / "datasets" / NAME
    count = int(megabytes * 1e6 / 2)
    for split, tokens in (("val", count // (shards + 1)), ("train", count * shards // (shards + 1))):
        with ShardWriter(folder, split, -(-tokens // (shards if split == "train" else 1))) as writer:
            writer.write(draw.integers(0, VOCABULARY, tokens, dtype=np.uint16))
    (root / "tokenizers").mkdir()
    (root / "tokenizers" / "made.model").write_bytes(draw.bytes(100_000))
    files = [path for path in root.rglob("*") if path.is_file()]
    hashes = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    entry = {
        "name": NAME,
        "tokenizer_name": "made",
        "vocab_size": VOCABULARY,
        "stats": {"files_train": shards, "files_val": 1},
        "sha256": {Path(path).name: value for path, value in hashes.items() if path.endswith(".bin")},
    }
    tokenizer = {"name": "made", "model_path": "tokenizers/made.model", "sha256": hashes["tokenizers/made.model"]}
    (root / "manifest.json").write_text(json.dumps({"datasets": [entry], "tokenizers": [tokenizer]}))
    return hashes


def handler(root: Path, faults: float, corrupt: float, seed: int, sent: list[int]) -> type[Any]:
    """A server's answers: right, or with the given probabilities broken off, refused or wrong."""
    draw, lock = random.Random(seed), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.send_response(200)
            size = (root / self.path.lstrip("/")).stat().st_size
            self.send_header("ETag", f'"{size}"')
            self.send_header("Content-Length", str(size))
            self.end_headers()

        def do_GET(self) -> None:
            with lock:
                fate, where, wrong = draw.random(), draw.random(), draw.random() < corrupt
            probe = self.path.endswith(".json")
            if fate < faults / 2:
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = (root / self.path.lstrip("/")).read_bytes()
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            start, end = (int(found[1]), int(found[2] or len(data) - 1) + 1) if found else (0, len(data))
            self.send_response(206 if found else 200)
            if found:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            self.send_header("ETag", f'"{len(data)}"')
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            body = bytearray(data[start:end])
            if wrong and not probe:
                body[int(where * len(body))] ^= 1
            if fate < faults and not probe:
                body = body[: int(where * len(body))]
                self.close_connection = True
            for at in range(0, len(body), 1 << 16):
                self.wfile.write(body[at : at + (1 << 16)])
                with lock:
                    sent[0] += len(body[at : at + (1 << 16)])
                time.sleep(0.002)

        def log_message(self, *parts: Any) -> None:
            """Nothing on stderr."""

    return Handler


class Server(http.server.ThreadingHTTPServer):
    """It says nothing of clients that are killed in the middle of an answer."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing on stderr."""


def wrong_files(out: Path, hashes: dict[str, str]) -> list[str]:
    """Files that have their name and are not what was published."""
    there = [path for path in hashes if (out / path).exists()]
    return [path for path in there if hashlib.sha256((out / path).read_bytes()).hexdigest() != hashes[path]]


def measure(kills: int, megabytes: float, faults: float, corrupt: float, seed: int) -> dict[str, Any]:
    """Kill a download that many times, then let it finish."""
    with tempfile.TemporaryDirectory() as name:
        root, out, draw, sent = Path(name) / "mirror", Path(name) / "data", random.Random(seed), [0]
        hashes = make_mirror(root, megabytes, 8, seed)
        server = Server(("127.0.0.1", 0), handler(root, faults, corrupt, seed, sent))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--variant", "made", "--mirror", f"http://127.0.0.1:{server.server_address[1]}", "--out", str(out)]
        command = [sys.executable, "-c", _COMMAND, "fetch", *options]
        killed = finished = wrong = tries = 0
        started = time.monotonic()
        while killed < kills:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before = sent[0]
            while process.poll() is None and sent[0] < before + 20_000:  # until it has got over the manifest
                time.sleep(0.002)
            time.sleep(draw.uniform(0.0, 0.15))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            else:  # it was done before: begin anew
                finished += process.returncode == 0
                wrong += len(wrong_files(out, hashes)) if process.returncode == 0 else 0
                for path in hashes:
                    (out / path).unlink(missing_ok=True)
            process.wait()
            wrong += len(wrong_files(out, hashes))
        while subprocess.run(command, capture_output=True, check=False).returncode:
            tries += 1
            if tries > 20:
                break
        missing = [path for path in hashes if not (out / path).exists()]
        wrong += len(wrong_files(out, hashes))
        server.shutdown()
        size = sum((root / path).stat().st_size for path in hashes)
    return {
        "kills": killed,
        "complete": not missing,
        "wrong_files": wrong,
        "downloads_finished": finished + 1,
        "bytes_of_files": size * (finished + 1),
        "bytes_sent": sent[0],
        "sent_over_needed": round(sent[0] / (size * (finished + 1)), 3),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--megabytes", type=float, default=8.0, help="size of the files")
    parser.add_argument("--faults", type=float, default=0.2, help="share of requests broken off or refused")
    parser.add_argument("--corrupt", type=float, default=0.02, help="share of bodies with a wrong bit")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    result = measure(**vars(arguments))
    print(table([{"count": key, "value": value} for key, value in result.items()]))
    print(json.dumps(result))
    sys.exit(0 if result["complete"] and not result["wrong_files"] else 1)


if __name__ == "__main__":
    main()
