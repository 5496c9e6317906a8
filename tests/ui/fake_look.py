"""A stand-in for scripts/look.py: the same protocol, PNG headers only, every bucket 64 x 64; some folders misbehave."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path


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
    pictures = [entry(file, folder) for folder in folders for file in sorted(Path(folder).glob("*.png"))]
    yield {"progress": [len(pictures), len(pictures)]}
    good = [picture for picture in pictures if not picture["problem"]]
    yield {
        "pictures": pictures,
        "buckets": [{"size": [64, 64], "pictures": len(good), "repeats": len(good), "filled": -len(good) % 8}],
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


def sees(question: dict) -> dict:
    """Draws whose prompts tell what was asked."""
    draws = [
        {"position": n, "prompt": f"{question['caption']} {question['seed']}", "flip": n % 2 == 1, "cut": ""}
        for n in range(question["draws"])
    ]
    return {"bucket": [64, 64], "resized": [64, 80], "crop": [0.0, 8.0, 64.0, 64.0], "draws": draws, "notes": []}


if __name__ == "__main__":
    main()
