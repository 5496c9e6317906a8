"""A stand-in for scripts/look.py: the same protocol, PNG headers only, every bucket 64 x 64; some folders misbehave."""

import base64
import io
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image


def main() -> None:
    """Answer lines until the input ends."""
    for line in sys.stdin:
        question = json.loads(line)
        for answer in answers(question):
            print(json.dumps({"id": question["id"], **answer}), flush=True)


def answers(question: dict) -> Iterator[dict]:
    """Everything that is said to one question."""
    if question["ask"] == "sees":
        yield sees(question)
        return
    if question["ask"] == "noise":
        yield noise(question["preset"])
        return
    data = question["preset"]["data"]
    wanted = question["which"] == "validation"
    entries = [one if isinstance(one, dict) else {"path": one} for one in data["folders"]]
    folders = [one["path"] for one in entries if (one.get("role") == "validation") == wanted]
    if any("deadly" in folder for folder in folders):
        print("MemoryError: too much", file=sys.stderr)
        raise SystemExit(3)
    if any("refused" in folder for folder in folders):
        yield {"error": "data.folders: not today"}
        return
    places = [place for place, one in enumerate(entries) if (one.get("role") == "validation") == wanted]
    pictures = [
        {**entry(file, entries[place]["path"]), **of_folder(place, entries[place], data, file)}
        for place in places
        for file in sorted(Path(entries[place]["path"]).glob("*.png"))
        if not file.stem.endswith("-masklabel")
    ]
    yield {"progress": [len(pictures), len(pictures)]}
    good = [picture for picture in pictures if not picture["problem"]]
    bucket = {"size": [64, 64], "pictures": len(good), "repeats": len(good), "filled": -len(good) % 8}
    yield {
        "pictures": pictures,
        "buckets": [bucket] if good else [],
        "problems": [picture["problem"] for picture in pictures if picture["problem"]],
        "notes": ["a note on the folder"],
        "tokens": 77,
    }


def entry(file: Path, folder: str) -> dict:
    """One picture."""
    head, text = file.read_bytes()[:24], file.with_suffix(".txt")
    caption = text.read_text(encoding="utf-8").strip() if text.exists() else ""
    good = head[:4] == b"\x89PNG"
    width, height = struct.unpack(">II", head[16:24]) if good else (None, None)
    return {
        "path": str(file),
        "name": file.name,
        "folder": folder,
        "caption": caption,
        "source": "txt" if caption else "missing",
        "caption_file": str(text),
        "width": width,
        "height": height,
        "bucket": [64, 64] if good else None,
        "repeats": 1,
        "problem": "" if good else f"{file}: is not a picture",
        "too_long": len(caption) > 200,
        "enlarged": max(64 / width, 64 / height) if good else None,
    }


def of_folder(place: int, folder: dict, data: dict, file: Path) -> dict:
    """What the settings of its folder make of a picture."""
    mask = file.with_name(f"{file.stem}-masklabel.png")
    sizes = folder.get("resolutions") or data.get("resolutions") or [64]
    return {
        "entry": place,
        "role": folder.get("role", "train"),
        "loss_weight": folder.get("loss_weight", 1),
        "repeats": folder.get("repeats", 1),
        "mask": str(mask) if mask.exists() else None,
        "resolutions": [{"resolution": size, "bucket": [size, size], "repeats": 1, "enlarged": 1} for size in sizes],
    }


def sees(question: dict) -> dict:
    """Draws whose prompts tell what was asked; with a caption of several lines, each is a sample of its own."""
    lines, size = question["caption"].split("\n"), question.get("resolution", 64)
    said = f"{lines[question.get('line', 0)]} {question['seed']}"
    crop = [0.0, 8.0, 64.0, 64.0] if size == 64 else [1.0, 2.0, size, size]
    plain = {"variant": None, "angle": 0.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0}
    version = {**plain, "hue": 0.0, "crop": crop, "chunks": [], "cut": ""}
    if question.get("pixels"):
        version |= {"pixels": png((0, 0, 255)), "mask": png((0,))}
    own = [{"position": n, "prompt": said, "flip": n % 2 == 1, "masked": n != 2} for n in range(question["draws"])]
    draws = [{**version, **one} for one in own]
    answer = {"bucket": [size, size], "resized": [64, 80], "crop": crop, "draws": draws, "notes": []}
    return {**answer, "captions": lines, "samples": len(lines), "variants": []}


def noise(preset: dict) -> dict:
    """All draws in one of ten parts, which `min_noise` says; every resolution has a shift of its own."""
    objective, sizes = preset["objective"], preset["data"]["resolutions"] or [preset["data"]["resolution"]]
    if objective["min_noise"] >= objective["max_noise"]:
        return {"error": "objective.min_noise: not below"}
    levels = []
    for number, size in enumerate(sizes):
        place = int(10 * objective["min_noise"]) + number
        counts = [100 * (n == place) for n in range(10)]
        levels.append({"resolutions": [size], "shift": 1.0 + number, "counts": counts, "mean": (place + 0.5) / 10})
    return {"density": objective["density"], "draws": 100, "levels": levels}


def png(color: tuple[int, ...]) -> str:
    """A picture of 8 x 8 pixels of one colour in base64, grey or RGB."""
    file = io.BytesIO()
    Image.new("RGB" if len(color) == 3 else "L", (8, 8), color if len(color) == 3 else color[0]).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main()
