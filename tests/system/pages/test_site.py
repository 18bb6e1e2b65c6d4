"""In a browser, the code of the built documentation can be read without scrolling, and its links are visible."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.long

FOUND = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = colour => {
    const [r, g, b] = parts(colour).map(part => part / 255)
      .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (...two) => (Math.max(...two.map(light)) + 0.05) / (Math.min(...two.map(light)) + 0.05);
  const colour = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
  return {
    blocks: document.querySelectorAll("pre > code").length,
    cut: [...document.querySelectorAll("pre > code")]
      .filter(code => code.scrollWidth > code.clientWidth + 1).map(code => code.innerText),
    wider: document.documentElement.scrollWidth - window.innerWidth,
    links: [...document.querySelectorAll("article :is(p, li, td) > a:not(.headerlink)")]
      .map(link => contrast(getComputedStyle(link).color, colour("body", "backgroundColor"))),
    header: contrast(colour(".md-header", "color"), colour(".md-header", "backgroundColor")),
  };
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    mkdocs = [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    subprocess.run(mkdocs, cwd=REPOSITORY, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    return folder


@pytest.mark.parametrize("width", [1360, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_as_wide_as_the_screen_and_its_links_are_seen(
    site: Path, browser: Any, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    links = blocks = 0
    for file in sorted(site.glob("*.html")):
        if file.name == "404.html":
            continue
        page.goto(f"file://{file}")
        found = page.evaluate(FOUND)
        links, blocks = links + len(found["links"]), blocks + found["blocks"]
        assert found["wider"] <= 0, file.name
        assert min([*found["links"], found["header"]]) >= 4.5, (file.name, found)
        # A phone is narrower than any code.
        assert width < 1000 or found["cut"] == [], file.name
    context.close()
    # The selectors find links and blocks of code.
    assert links > 100
    assert blocks > 50
