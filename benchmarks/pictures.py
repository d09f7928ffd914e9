"""The pictures of the live page in docs/figures, taken with a headless Chromium.

    python benchmarks/pictures.py runs/cpu-demo runs/cpu-hnet-2stage --data data/both

The first model is shown in light, with a letter typed; both beside each other in the dark; the second on a phone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import browser
from serving import served

TEXT = (
    "Fellow citizens of the Senate and of the House: the naïve café has 12,345.67 dollars,\u00a0and 你好，世界 too.\n"
    "\tThe government of the United States was made by the people. Change one letter and watch."
)
EDITED = "ernment of"
"""In place of its first letters comes a space: the chunk is cut."""

READY = "typeof live !== 'undefined' && live.panes.length > 0 && live.panes.every((one) => one.reading) && !busy"
SCORED = "document.querySelectorAll('#scores dt').length >= 5"


def write(page: browser.Browser, text: str) -> None:
    """Put a text in, and wait for all that the page says of it."""
    page.run(f"editor.focus(); editor.value = {json.dumps(text)}; edited = -Infinity; changed()")
    page.until(f"{READY} && {SCORED}")


def choose(page: browser.Browser, control: str, place: int) -> None:
    """Choose from a list."""
    page.run(f"{{ const one = $('{control}'); one.selectedIndex = {place}; one.dispatchEvent(new Event('change')); }}")
    page.until(READY)


def take(page: browser.Browser, path: Path) -> None:
    """Take a picture once nothing moves."""
    page.until(f"{READY} && {SCORED}")
    time.sleep(0.5)
    page.screenshot(path)
    assert not page.errors, page.errors
    print(path)


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--data", default="data/both", help="a prepared folder, with sp1024's tokenizer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "figures")
    asked = parser.parse_args()
    options = (str(asked.second), "--data", asked.data, "--bpe", "sp1024")
    with served(asked.first, *options) as (host, port, _), browser.running() as page:
        address = f"http://{host}:{port}/"
        page.open(address, 1280, 860)
        page.until(READY)
        write(page, TEXT)
        time.sleep(2)  # what is typed next is an edit of its own
        place = TEXT.index(EDITED)
        page.run(f"editor.setSelectionRange({place}, {place})")
        page.type(" ")
        take(page, asked.out / "serve.png")
        page.open(address, 1280, 860, dark=True)
        page.until(READY)
        choose(page, "compare", 2)
        write(page, TEXT)
        take(page, asked.out / "serve-compare.png")
        page.open(address, 390, 844)
        page.until(READY)
        choose(page, "model", 1)
        take(page, asked.out / "serve-phone.png")


if __name__ == "__main__":
    main()
