"""Find phrases in comments, docstrings and pages that readers have to read twice.

    python tools/check_words.py [PATH ...]

Prints a line per phrase and exits with 1 if it finds one. `ALLOWED` lists exceptions by file and text.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKED = ("spark_aesthetic", "jobs", "tools", "benchmarks", "docs", "README.md", "CONTRIBUTING.md", "SECURITY.md")

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
)


def python_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each comment and docstring of a Python file; adjacent comment lines are one text."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), re.sub(r"^ *(>>>|\.\.\.) .*$", "", text, flags=re.MULTILINE)
    comment, first, last = "", 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("#! ")
        if line == last + 1 and comment:
            comment, last = f"{comment} {text}", line
            continue
        if comment:
            yield first, comment
        comment, first, last = text, line, line
    if comment:
        yield first, comment


def markdown_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of a page, without its code."""
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`", "", line)


def faults(path: Path) -> Iterator[str]:
    """Yield a message for each phrase in a file that is not allowed."""
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    texts = markdown_texts(path) if path.suffix == ".md" else python_texts(path)
    for number, text in texts:
        flat = " ".join(re.sub(r"`[^`]*`", "``", text).split())
        for found in [*OPENINGS.finditer(flat), *PHRASES.finditer(flat)]:
            around = flat[max(0, found.start() - 30) : found.end() + 40]
            if not any(name == file and part in flat for file, part in ALLOWED):
                yield f"{name}:{number}: {found[1]!r} in …{around}…"


def main(paths: list[str]) -> int:
    """Check files and folders; by default `CHECKED`."""
    places = [Path(path).resolve() for path in paths] or [ROOT / name for name in CHECKED]
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    found = [fault for file in files if file.suffix in (".py", ".md") for fault in faults(file)]
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
