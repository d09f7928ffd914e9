"""Pictures, sounds and tables: the kernel against plain Python, headers, what is coded comes back and is smaller."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bytegolf.errors import BytegolfError
from bytegolf.infer import codec as coding
from bytegolf.infer import format as compressed
from bytegolf.infer import guess as guessing
from bytegolf.infer import layouts
from bytegolf.infer.codec import Codec
from bytegolf.infer.guess import guess
from bytegolf.infer.layouts import LITTLE, MU_LAW, SIGNED, find, in_order, pieces
from bytegolf.mixing.coding import BitCoder
from bytegolf.mixing.reference import Reference
from bytegolf.mixing.samples import Layout, Samples, mixer_for
from bytegolf.ops import native

LAYOUTS = [
    Layout("picture", 3, 1, 30),
    Layout("picture", 1, 1, 17, 3),
    Layout("picture", 4, 2, 28, 5),
    Layout("sound", 2, 2),
    Layout("sound", 1, 3, 0, 2),
    Layout("table", 1, 1, 13),
]


def packed(data: bytes) -> bytes:
    target = io.BytesIO()
    Codec().compress(io.BytesIO(data), target, size=len(data))
    return target.getvalue()


def unpacked(data: bytes) -> bytes:
    target = io.BytesIO()
    Codec().decompress(io.BytesIO(data), target, "the file")
    return target.getvalue()


def slopes(size: int, seed: int = 0) -> NDArray[np.uint8]:
    chance = np.random.default_rng(seed)
    return (128 + np.cumsum(chance.normal(0, 3, size))).astype(np.int64).astype(np.uint8)


def wav(samples: bytes, channels: int = 1, bits: int = 16, kind: int = 1) -> bytes:
    block = channels * (bits + 7) // 8
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, channels, 8000, 8000 * block, block, bits)
    body = head + struct.pack("<4sI", b"data", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def tone(count: int) -> bytes:
    """A voice of 16 bits, the lowest byte first, with noise."""
    chance = np.random.default_rng(1)
    samples: NDArray[np.int16] = (9000 * np.sin(np.arange(count) * 0.05) + chance.integers(-4, 5, count)).astype("<i2")
    return samples.tobytes()


def bitmap(wide: int, high: int, bits: int = 24) -> bytes:
    row, colors = (wide * bits + 31) // 32 * 4, bytes(range(256)) * 4 if bits == 8 else b""
    x, y = np.meshgrid(np.arange(row), np.arange(high))
    noise = np.random.default_rng(0).integers(0, 5, x.shape)
    pixels: NDArray[np.uint8] = (120 + 60 * np.sin(x / 29) + 50 * np.cos(y / 7) + noise).astype(np.uint8)
    return dib(wide, high, bits, 54 + len(colors)) + colors + pixels.tobytes()


def dib(wide: int, high: int, bits: int, pixels: int) -> bytes:
    """The header of a BMP."""
    return struct.pack("<2sIIIIiiHHIIIIII", b"BM", 0, 0, pixels, 40, wide, high, 1, bits, 0, 0, 0, 0, 0, 0)


@pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")
@pytest.mark.parametrize("layout", LAYOUTS, ids=[f"{one.kind} {one.width}" for one in LAYOUTS])
def test_the_kernel_is_the_reference_bit_for_bit(layout: Layout) -> None:
    data, states = slopes(150), []
    for plain in (False, True):
        mixer = mixer_for(layout, 1)
        if plain:
            mixer.engine = Reference(mixer.state)
        samples, coder = Samples(layout, mixer), BitCoder(room=400)
        samples.code(coder, data.copy())
        names = ("numbers", "values", "weights", "products", "scales", "traces", "predicted", "frequencies", "given")
        states.append([coder.payload(), mixer.state.weights, *(getattr(samples, name) for name in names)])
    for one, other in zip(*states, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("data", "layout", "order"),
    [
        (bitmap(30, 20), Layout("picture", 3, 1, 92, 54), 0),
        (bitmap(30, 20, 8)[14:], Layout("picture", 1, 1, 32, 40 + 1024), 0),
        (b"P6 # of a test\n20 30\n255\n" + bytes(1800), Layout("picture", 3, 1, 60, 25), 0),
        (b"P5 20 30 4095\n" + bytes(1200), Layout("picture", 1, 2, 20, 14), 0),
        (
            b"P7\nWIDTH 20\nHEIGHT 30\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + bytes(2400),
            Layout("picture", 4, 1, 80, 67),
            0,
        ),
        (bytes([3, 0, 2, *bytes(9), 20, 0, 30, 0, 32, 0]) + b"abc" + bytes(2400), Layout("picture", 4, 1, 80, 21), 0),
        (wav(bytes(1000), 2), Layout("sound", 2, 2, 0, 44), LITTLE | SIGNED),
        (wav(bytes(1000), 1, 8), Layout("sound", 1, 1, 0, 44), 0),
        (wav(bytes(1000), 1, 8, 7), Layout("sound", 1, 1, 0, 44), MU_LAW),
        (wav(bytes(1000), 2, 32, 3), Layout("table", 1, 1, 8, 44), 0),
        (
            b"FORM\0\0\0\0AIFF" + struct.pack(">4sIHIH", b"COMM", 18, 2, 250, 16) + bytes(10)
            + struct.pack(">4sIII", b"SSND", 1008, 0, 0) + bytes(1000),
            Layout("sound", 2, 2, 0, 54),
            SIGNED,
        ),
        (b".snd" + struct.pack(">5I", 24, 1000, 1, 8000, 1) + bytes(1000), Layout("sound", 1, 1, 0, 24), MU_LAW),
        (
            b"II*\0\x08\0\0\0\x05\0"
            + b"".join(
                struct.pack("<HHII", tag, 4, 1, value)
                for tag, value in ((256, 20), (257, 30), (258, 8), (273, 74), (279, 600))
            )
            + bytes(4) + bytes(600),
            Layout("picture", 1, 1, 20, 74),
            0,
        ),
    ],
)  # fmt: skip
def test_headers_say_how_samples_lie(data: bytes, layout: Layout, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "LEAST_WITHIN", 256)
    found = find(data, first=True)
    assert found is not None
    assert (found.layout, found.order, found.size) == (layout, order, len(data))
    for cut in range(0, len(data) - 200, 7):
        assert find(data[:cut]) is None or cut > layout.start
    behind = find(b"text before it\n" + data)
    assert layout == Layout("picture", 4, 1, 80, 21) or (behind is not None and behind.begin == 15)


def test_text_about_a_header_is_text() -> None:
    assert find(b"A picture is P6 300 300 255 and then " + b"so many bytes, of which none is here. " * 20) is None


@given(st.binary(max_size=70), st.sampled_from(LAYOUTS), st.sampled_from([0, SIGNED, LITTLE | SIGNED, LITTLE, MU_LAW]))
def test_an_order_is_undone(data: bytes, layout: Layout, order: int) -> None:
    some = np.frombuffer(data, np.uint8)
    assert np.array_equal(in_order(in_order(some, layout, order), layout, order, back=True), some)


def test_samples_are_ordered_as_numbers() -> None:
    numbers = np.array([-32768, -1, 0, 32767], "<i2")
    changed = in_order(numbers.view(np.uint8), Layout("sound", 1, 2), LITTLE | SIGNED)
    assert changed.view(">u2").tolist() == [0, 32767, 32768, 65535]
    laws = np.array([0x00, 0x7F, 0xFF, 0x80], np.uint8)  # the lowest, −0, 0, the highest
    assert in_order(laws, Layout("sound", 1, 1), MU_LAW).tolist() == [0, 127, 128, 255]


def test_sounds_and_pictures_are_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 bits 3.2 are noise in the sound, of 8 bits 2.3 in the picture; contexts alone have to learn each value."""
    files = [wav(tone(3000)), bitmap(60, 50)]
    sizes = [len(packed(data)) for data in files]
    for data in files:
        assert unpacked(packed(data)) == data
    monkeypatch.setattr(layouts, "find", lambda data, first=False: None)
    monkeypatch.setattr(guessing, "guess", lambda data: iter(()))
    alone = [len(packed(data)) for data in files]
    assert sizes[0] < 0.6 * alone[0], "3,000 samples"
    assert sizes[1] < 0.8 * alone[1], "3,000 pixels"


def test_samples_go_on_over_blocks_and_text_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((compressed, "MIB"), (coding, "BLOCK")):
        monkeypatch.setattr(module, name, 1500)
    monkeypatch.setattr(layouts, "LEAST_WITHIN", 256)
    text = b"so that what lies between is text. " * 20
    data = wav(tone(1500)) + text + bitmap(31, 40) + text + wav(tone(1000)[:-1], 1, 24)
    cut = list(pieces(io.BytesIO(data).read, 1500))
    assert b"".join(piece.data for piece in cut) == data
    assert [piece.found.layout.kind[0] if piece.found else "-" for piece in cut] == [*"sss-ppp-ss"]
    assert [piece.goes_on for piece in cut if piece.found] == [False, True, True, False, True, True, False, True]
    assert [len(piece.data) % 96 for piece in cut[4:7]] == [54, 0, 0], "whole rows"
    assert unpacked(packed(data)) == data
    assert [len(piece.data) for piece in pieces(io.BytesIO(data[:3744] + bytes(40)).read, 1 << 20)] == [3044, 740]
    assert len(list(pieces(io.BytesIO(data[:3044] + bytes(40)).read, 1 << 20))) == 1, "too little for another block"
    for size in (len(data) - 1, 2000, 1400, 300, 45, 44):
        assert unpacked(packed(data[:size])) == data[:size]


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_any_header_comes_back(data: st.DataObject) -> None:
    """Headers that lie, with numbers of any size, and less behind them than they say."""
    number = st.one_of(st.integers(0, 40), st.sampled_from([255, 65535, 1 << 20, (1 << 31) - 1]))
    body = slopes(data.draw(st.integers(300, 700)), data.draw(st.integers(0, 9))).tobytes()
    a, b, c = (data.draw(number) for _ in range(3))
    head = data.draw(
        st.sampled_from(
            [
                dib(a, b - c, data.draw(st.sampled_from([1, 4, 8, 16, 24, 32])), 54 + c % 99),
                f"P6 {a} {b} {c}\n".encode(),
                f"P5\n{a} {b}\n{c}\n".encode(),
                wav(b"", a % 300, b % 300)[:40] + struct.pack("<I", 2 * c),
                b".snd" + struct.pack(">5I", 24 + a % 50, c, b % 8, 8000, a),
                b"MM\0*" + struct.pack(">I", a) + struct.pack(">H", b % 65536),
                b"\x93NUMPY\x01\0\x50\0{'descr': '<i2', 'fortran_order': False, 'shape': (%d, %d)}" % (a, b),
            ]
        )
    )
    file = bytes(data.draw(st.integers(0, 3))) + head + body
    assert unpacked(packed(file)) == file


def test_samples_that_cannot_be_are_refused() -> None:
    whole = packed(wav(tone(400)))
    header = compressed.Header.read(source := io.BytesIO(whole), "")
    assert header.single
    start = source.tell()
    kind, sizes = whole[start + 1], whole[start + 2]
    for part in (
        bytes([kind & ~3, sizes, 0, 44]),  # no kind
        bytes([kind | 128, sizes, 0, 44]),  # an order that is none
        bytes([kind, sizes & 15, 0, 44]),  # samples of no bytes
        bytes([kind, 9 | 16, 0, 44]),  # nine channels
        bytes([kind, sizes, 7, 44]),  # a sound in rows
        bytes([1, 1 | 16, 0, 44]),  # a picture without
        bytes([1, 1 | 16]) + b"\xff" * 8 + b"\x01,",  # rows of 2⁶³ samples
        bytes([kind, sizes, 0]) + b"\xff" * 8 + b"\x01",  # that begin far behind the block
    ):
        with pytest.raises(BytegolfError, match=r"samples that cannot be|declares samples"):
            unpacked(whole[:start] + b"\x04" + part + whole[start + 5 :])
    with pytest.raises(BytegolfError, match="samples go on that never began"):
        unpacked(whole[:start] + b"\x04\0" + whole[start + 5 :])
    for at in (*range(start + 8), len(whole) // 2, len(whole) - 1):
        with pytest.raises(BytegolfError, match="the file"):
            unpacked(whole[:at])
    for at in (*range(4, start + 8), len(whole) - 5, len(whole) - 1):
        with pytest.raises(BytegolfError, match="the file"):
            unpacked(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
    with pytest.raises(BytegolfError, match="the file"):
        unpacked(whole + b"x")


def test_samples_without_a_header_are_guessed() -> None:
    sound = tone(5000)
    assert unpacked(packed(sound)) == sound
    assert next(guess(sound)).layout == Layout("sound", 1, 2)
    rows = bitmap(60, 60)[54:]
    assert Layout("picture", 1, 1, 180) in [found.layout for found in guess(rows)]
    chance = np.random.default_rng(0)
    records = np.stack([np.arange(700) // 3, *chance.integers(0, 9, (10, 700)), np.full(700, 255)], 1).astype(np.uint8)
    assert next(guess(records.tobytes())).layout == Layout("table", 1, 1, 12)
    for nothing in (b"text has lines of all lengths\n" * 300, chance.bytes(9000), sound[:900]):
        assert not list(guess(nothing))


def test_stored_files_grow_by_nine_bytes() -> None:
    noise = np.random.default_rng(0).bytes(5000)
    assert len(packed(noise)) == 5009
    assert unpacked(packed(noise)) == noise
