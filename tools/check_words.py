"""Find phrases in comments, docstrings, pages and notebooks that readers have to read twice.

    python tools/check_words.py [PATH ...]

Prints a line per phrase and exits with 1 if it finds one. `ALLOWED` lists exceptions by file and text.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKED = (
    "spark_aesthetic", "jobs", "tools", "tests", "benchmarks", "conf", "notebooks", "docs", "Makefile", "README.md",
    "CONTRIBUTING.md", "SECURITY.md",
)  # fmt: skip

# A sentence that opens with one of these is understood only at its end.
OPENINGS = re.compile(r"(?:^|[.!?:]\s+)(Of|Else|That of|Those of)\s")
# Everyday words in place of the field's.
PHRASES = re.compile(r"\b(told|tells of|others|is there|are there|came by|whose|thereof|by which alone)\b")

# (file, a part of the sentence): quotes and fixed terms.
ALLOWED: tuple[tuple[str, str], ...] = (
    # The names of parameters and attributes.
    ("spark_aesthetic/delta/commits.py", "told: Its user metadata"),
    ("spark_aesthetic/scoring/plan.py", "others: Effects of other writers on the scores"),
    ("spark_aesthetic/scoring/plan.py", "others: Whether other sources have rows there"),
    ("spark_aesthetic/scoring/target.py", "told: Properties for a new table"),
    # A docstring that is the input of a test.
    ("tests/unit/cli/test_arguments.py", "size: Of a file"),
)


def joined(comments: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield adjacent comment lines as one text, with the number of the first line."""
    comment, first, last = "", 0, -1
    for line, text in comments:
        if comment and line == last + 1:
            comment = f"{comment} {text}"
        else:
            if comment:
                yield first, comment
            comment, first = text, line
        last = line
    if comment:
        yield first, comment


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each comment and docstring of a Python file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), re.sub(r"^ *(>>>|\.\.\.) .*$", "", text, flags=re.MULTILINE)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    yield from joined((t.start[0], t.string.lstrip("#! ")) for t in tokens if t.type == tokenize.COMMENT)


def settings_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each comment of settings, a script or a Makefile: `#` lines, and text after ` ## `."""
    found = (re.match(r"\s*#(.*)|.*? ## (.*)", line) for line in source.splitlines())
    yield from joined((at, (line[1] or line[2] or "").lstrip("#! ")) for at, line in enumerate(found, start=1) if line)


def markdown_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of a page, without its code."""
    fenced = False
    for number, line in enumerate(source.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`", "", line)


def notebook_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the number of each cell of a notebook with its texts."""
    for number, cell in enumerate(json.loads(source)["cells"], start=1):
        read = markdown_texts if cell["cell_type"] == "markdown" else settings_texts
        yield from ((number, text) for _, text in read("".join(cell["source"])))


READERS = {
    ".py": python_texts,
    ".md": markdown_texts,
    ".ipynb": notebook_texts,
    **dict.fromkeys((".conf", ".properties", ".sh", ".yml", "Makefile", "Dockerfile"), settings_texts),
}


def faults(path: Path) -> Iterator[str]:
    """Yield a message for each phrase in a file that is not allowed."""
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    read = READERS[path.suffix or path.name]
    for number, text in read(path.read_text(encoding="utf-8")):
        flat = " ".join(re.sub(r"`[^`]*`", "``", text).split())
        for found in [*OPENINGS.finditer(flat), *PHRASES.finditer(flat)]:
            around = flat[max(0, found.start() - 30) : found.end() + 40]
            if not any(name == file and part in flat for file, part in ALLOWED):
                yield f"{name}:{number}: {found[1]!r} in …{around}…"


def main(paths: list[str]) -> int:
    """Check files and folders; by default `CHECKED`."""
    places = [Path(path).resolve() for path in paths] or [ROOT / name for name in CHECKED]
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    found = [fault for file in files if (file.suffix or file.name) in READERS for fault in faults(file)]
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
