"""Fills corpus/ with the fixtures of lacewing-weights, whole and as bare pickles behind a container's letter.

    python3 fuzz/seed.py && cargo +nightly fuzz run pickle -- -rss_limit_mb=2048 -timeout=10
"""

import pickletools
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "crates/lacewing-weights/tests/fixtures"


def main():
    for target in ("pickle", "safetensors"):
        (HERE / "corpus" / target).mkdir(parents=True, exist_ok=True)
    for path in FIXTURES.rglob("*.safetensors"):
        (HERE / "corpus/safetensors" / f"{path.parent.name}-{path.stem}").write_bytes(path.read_bytes())
    paths = [path for path in FIXTURES.rglob("*") if path.suffix in (".pt", ".tar", ".bin")]
    for path in paths:
        data = path.read_bytes()
        name = f"{path.parent.name}-{path.stem}"
        (HERE / "corpus/pickle" / name).write_bytes(data)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entry = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
                (HERE / "corpus/pickle" / f"{name}-z").write_bytes(b"z" + archive.read(entry))
        elif data[:1] == b"\x80":
            at = 0
            for _ in range(3):  # the magic number, the protocol and the machine
                at += list(pickletools.genops(data[at:]))[-1][2] + 1
            (HERE / "corpus/pickle" / f"{name}-l").write_bytes(b"l" + data[at:])


main()
