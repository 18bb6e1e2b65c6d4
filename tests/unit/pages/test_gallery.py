"""The gallery is one complete file, in the order of the scores, and names untrained weights."""

from __future__ import annotations

import re
from base64 import b64decode
from io import BytesIO

from PIL import Image

from spark_aesthetic.pages.gallery import ScoredEmbedding, ScoredImage, gallery
from spark_aesthetic.testing import noise_image

PHOTOGRAPHS = [
    ScoredImage("low.jpg", noise_image(0), 4.5, None),
    ScoredImage("<b>bad</b>.png", b"no image", None, "decode: not an image"),
    ScoredImage("zero.jpg", noise_image(1), 0.0, None),
    ScoredImage("high.png", noise_image(2, file_format="PNG", mode="RGBA"), 6.25, None),
]


def page(model: str) -> str:
    embeddings = [ScoredEmbedding("rating0", 1.655)]
    return gallery(PHOTOGRAPHS, model, embeddings, "laion-aesthetics-v2@0", title="Photographs", subtitle="All of them")


def test_photographs_stand_in_the_order_of_their_scores_and_failures_last() -> None:
    names = re.findall(r'<bdi class="name">(.*?)</bdi>', page("mine@0"))
    assert names == ["high.png", "low.jpg", "zero.jpg", "&lt;b&gt;bad&lt;/b&gt;.png"]


def test_a_score_of_zero_is_a_score_and_a_failure_has_its_reason() -> None:
    text = page("mine@0")
    assert '<span class="score">0.000</span>' in text
    assert '<span class="error">decode: not an image</span>' in text


def test_untrained_weights_are_named_beside_every_score() -> None:
    assert page("untrained-vit-b-32@0").count("(untrained)") == 3
    assert "These scores mean nothing" in page("untrained-vit-b-32@0")
    assert "untrained" not in re.sub(r"<style>.*?</style>", "", page("mine@0"), flags=re.DOTALL)


def test_the_page_loads_nothing_from_outside() -> None:
    text = page("mine@0")
    sources = re.findall(r'(?:src|href)="(.*?)"', text)
    assert len(sources) == 3
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "http" not in text
    assert "url(" not in text


def test_images_are_shown_as_on_the_other_pages() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    Image.new("RGB", (900, 600), "red").save(file, "JPEG", exif=exif)
    uri = ScoredImage("turned.jpg", file.getvalue(), 5.0, None).thumbnail
    assert uri is not None
    assert Image.open(BytesIO(b64decode(uri.partition(",")[2]))).size == (320, 480)
    # A file that scoring cannot decode gets no thumbnail and is no error of the page.
    assert ScoredImage("x.ppm", b"P6 1 1 255 abc", 5.0, None).thumbnail is None
    assert ScoredImage("gone.jpg", None, 5.0, None).thumbnail is None
