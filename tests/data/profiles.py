"""Colour profiles (ICC 2.4), written by hand, and what colours mean by the formulas of their standards."""

import struct

import numpy as np

ADOBE_GAMMA = 563 / 256
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
"""From linear AdobeRGB (1998) to XYZ under D50: columns are the primaries."""
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
WHITE = np.array([0.9642, 1.0, 0.8249])


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))


def profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    head = struct.pack(">4x4sI4s4s4s12x4s28x", b"none", 0x02400000, kind, space, connection, b"acsp")
    head = (head + fixed(*WHITE)).ljust(128, b"\0")
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content = content.ljust(-(-len(content) // 4) * 4, b"\0")
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content
    whole = head + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


def point(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + fixed(*values)


def power(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))


def of_primaries(primaries: np.ndarray, gamma: float) -> bytes:
    curves = {channel + b"TRC": power(gamma) for channel in (b"r", b"g", b"b")}
    points = {channel + b"XYZ": point(primaries[:, place]) for place, channel in enumerate((b"r", b"g", b"b"))}
    return profile(b"RGB ", b"XYZ ", b"mntr", {b"wtpt": point(WHITE), **points, **curves})


def of_grey(gamma: float) -> bytes:
    return profile(b"GRAY", b"XYZ ", b"mntr", {b"wtpt": point(WHITE), b"kTRC": power(gamma)})


def of_inks(corners: np.ndarray) -> bytes:
    """A printer's: `corners` `(2, 2, 2, 2, 3)` are Lab of no ink and all ink of cyan, magenta, yellow and black."""
    same = bytes(range(256))
    lab = corners * [2.55, 1, 1] + [0, 128, 128]
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += 4 * same + lab.round().astype(np.uint8).tobytes() + 3 * same
    return profile(b"CMYK", b"Lab ", b"prtr", {b"wtpt": point(WHITE), b"A2B0": table, b"A2B1": table})


def encoded(xyz: np.ndarray) -> np.ndarray:
    """sRGB values of a colour under D50 (IEC 61966-2-1)."""
    light = np.clip(np.linalg.inv(SRGB) @ xyz, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def adobe(colour: tuple[int, int, int]) -> np.ndarray:
    return encoded(ADOBE @ (np.array(colour) / 255) ** ADOBE_GAMMA)


def lab(colour: tuple[float, float, float]) -> np.ndarray:
    y = (colour[0] + 16) / 116
    f = np.array([y + colour[1] / 500, y, y - colour[2] / 200])
    return encoded(WHITE * np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2))
