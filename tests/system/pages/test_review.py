"""The review page: its counts and drawings, and its behaviour in a browser when keys are really pressed."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import bytes_read, last_query
from PIL import Image
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.cli import curation, submit
from spark_aesthetic.curation.labels import _read_csv
from spark_aesthetic.errors import OptionError, TableError
from spark_aesthetic.images.thumbnails import MAX_BYTES, thumbnail
from spark_aesthetic.pages.review import Review
from spark_aesthetic.pages.sampling import Hundredths, _bands, _columns, _quotas, _sample
from spark_aesthetic.testing import noise_image, photographs

SCORES = "site int, path string, aesthetic_score float, aesthetic_error string, aesthetic_model string"
IMAGES = "site int, path string, image binary"
MODEL = "untrained-vit-b-32@0123456789ab"

# These names may break a CSV file, or be taken for a number or a formula.
AWKWARD = ['a,"b" c.jpg', " spaces ", "007", "back\\slash", "ü ✓ 猫.png", "line\nbreak", "=1+1", "</script><b>", "'"]


def rows_of_scores() -> list[tuple[Any, ...]]:
    rows = [(1, path, 5.0 + at / 100, None, MODEL) for at, path in enumerate(AWKWARD)]
    rows += [(2, f"{at}.jpg", 3.0 + at / 10, None, MODEL) for at in range(40)]
    rows += [(3, name, 4.95 + at / 100, None, MODEL) for at, name in enumerate(("truncated", "null", "gone"))]
    rows += [(4, "no score", None, "decode: not an image", MODEL), (4, "nan", float("nan"), None, MODEL)]
    rows += [(4, "not yet", None, None, None), (None, "no key", 5.0, None, MODEL)]
    return rows


def rows_of_images() -> list[tuple[Any, ...]]:
    pictures = [*photographs().values()]
    rows = [(1, path, bytearray(picture)) for path, picture in zip(AWKWARD, pictures, strict=True)]
    rows += [(2, f"{at}.jpg", bytearray(noise_image(at))) for at in range(40)]
    return [*rows, (3, "truncated", bytearray(noise_image(0)[:-900])), (3, "null", None)]


@pytest.fixture(scope="module")
def scores(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(rows_of_scores(), SCORES).coalesce(1)


@pytest.fixture(scope="module")
def images(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(rows_of_images(), IMAGES).coalesce(1)


@pytest.fixture(scope="module")
def made(scores: DataFrame, images: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Review:
    out = tmp_path_factory.mktemp("review") / "review.html"
    return sa.review(scores, images, key=["site", "path"], out=out, cut=5.0, source="the tests' tables")


def about(page: str | Path) -> dict[str, Any]:
    text = Path(page).read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="about">(.*?)</script>', text)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_every_row_is_in_the_histogram_or_in_a_count_by_reason(made: Review) -> None:
    assert (made.model, made.cut, made.scored, made.shown) == (MODEL, 5.0, 52, 52)
    assert made.unscored == {"decode: not an image": 1, "key: null": 1, "not finite": 1, "unscored": 1}
    assert made.without_picture == {"decode: truncated JPEG": 1, "no row in the images": 1, "null": 1}
    page = Path(made.out).read_text(encoding="utf-8")
    assert made.page_bytes == len(page.encode())
    assert page.count("data:image/webp;base64,") == 49
    for reason in (*made.unscored, *made.without_picture):
        assert f"<li>{reason}: 1</li>" in page


def test_the_page_names_model_source_and_untrained_weights_beside_every_score(made: Review) -> None:
    page = Path(made.out).read_text(encoding="utf-8")
    assert MODEL in page
    assert "the tests&#39; tables" in page
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", page)
    assert "These scores mean nothing" in page
    assert len(re.findall(r'class="score">\d\.\d\d \(untrained\)', page)) == 52
    assert not re.search(r"https?:|@import|(?:src|href)=.(?!data:image/webp;|#)|url\((?!#)", page)
    assert page.count("</script>") == 2


def test_the_sample_depends_on_the_rows_and_the_seed_alone(
    spark: SparkSession, interpreted: None, tmp_path: Path
) -> None:
    numbers = np.random.default_rng(0).normal(5, 0.7, 20_000).astype(np.float32).tolist()
    frame = spark.createDataFrame(list(enumerate(numbers)), "id int, aesthetic_score float").coalesce(1)
    none = spark.createDataFrame([], "id int, image binary")

    done = sa.review(frame, none, key=["id"], out=tmp_path / "page.html", n=300, cut=6.0)
    assert (done.shown, done.model, done.scored) == (300, None, 20_000)
    first = about(tmp_path / "page.html")
    assert first["score"] == "aesthetic_score"
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    shown = set(re.findall(r"data-key='\[\"(\d+)\"\]'", text))
    assert len(shown) == 300

    bands = _bands(Hundredths(first["first"], first["counts"]), 300, 600)

    def keys(rows: DataFrame, seed: int) -> set[str]:
        return {row.text[0] for row in _sample(_columns(rows, ["id"], "aesthetic_score"), bands, ["id"], None, seed)}

    assert keys(frame.repartition(3, "aesthetic_score"), 0) == shown
    assert len(keys(frame, 1) & shown) < 200

    # The page counts all rows by whole hundredths, as the condition beside the cut compares them.
    edges = (np.arange(-100, 1200) / 100).astype(np.float32)
    expected = Counter((np.searchsorted(edges, np.float32(numbers), side="right") - 101).tolist())
    assert first["counts"] == [expected[first["first"] + at] for at in range(len(first["counts"]))]
    cuts = (4.29, 5.57)
    kept = frame.agg(*[F.count_if(F.expr(f"aesthetic_score >= {cut}{first['suffix']}")) for cut in cuts]).collect()[0]
    assert list(kept) == [sum(first["counts"][round(100 * cut) - first["first"] :]) for cut in cuts]

    found = re.findall(r">([\d.]+) to [\d.]+\n.*?, (\d+) shown", text)
    quotas = {float(low): int(count) for low, count in found}
    assert sum(quotas.values()) == 300
    assert max(quotas, key=quotas.__getitem__) == 6.0
    assert quotas[6.0] > quotas[5.8] > quotas[5.0] > 0


@pytest.mark.parametrize("kind", ["float", "double", "decimal(5,2)"])
def test_a_score_that_equals_the_cut_is_above_it(
    spark: SparkSession, interpreted: None, kind: str, tmp_path: Path
) -> None:
    # The first five are less, as FLOAT, than the decimal numbers here.
    numbers = [5.1, 6.35, 0.7, 8.13, 4.23, 0.29, -2.3, 150.0, -150.0]
    frame = spark.createDataFrame(list(enumerate(numbers)), "id int, s double").select(
        "id", F.col("s").cast(kind).alias("s")
    )
    none = spark.createDataFrame([], "id int, image binary")
    sa.review(frame, none, key="id", out=tmp_path / "page.html", score_col="s", cut=5.1)
    told = about(tmp_path / "page.html")
    for cut in numbers[:7]:
        kept = sum(told["counts"][round(100 * cut) - told["first"] :])
        assert (
            kept == sum(number >= cut for number in numbers) == sa.curate(frame, min_score=cut, score_col="s").count()
        )
        assert frame.where(f"s >= {cut}{told['suffix']}").count() == kept


@pytest.mark.parametrize(
    ("rows", "weights", "n", "expected"),
    [
        ([100, 100, 100], [1, 1, 1], 30, [10, 10, 10]),
        ([2, 100, 100], [1, 1, 1], 30, [2, 14, 14]),
        ([100, 3, 100], [0.5, 1, 0.5], 13, [5, 3, 5]),
        ([1, 2, 0], [1, 1, 1], 30, [1, 2, 0]),
        ([100], [1], 1, [1]),
    ],
)
def test_what_a_band_cannot_show_goes_to_the_others(
    rows: list[int], weights: list[float], n: int, expected: list[int]
) -> None:
    assert _quotas(rows, weights, n) == expected


def opened(data: bytes | None) -> Image.Image:
    assert data is not None
    return Image.open(BytesIO(data)).convert("RGB")


def file_of(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_thumbnails_are_small_upright_and_on_white() -> None:
    largest, reason = thumbnail(noise_image(0, width=1500, height=1400))
    assert reason is None
    assert opened(largest).size == (256, 239)
    assert len(largest or b"") <= MAX_BYTES
    assert opened(thumbnail(noise_image(0, width=20, height=10))[0]).size == (20, 10)

    exif = Image.Exif()
    exif[0x0112] = 6
    on_its_side = file_of(Image.new("RGB", (80, 40)), "JPEG", exif=exif)
    assert opened(thumbnail(on_its_side)[0]).size == (40, 80)

    clear = file_of(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG")
    assert opened(thumbnail(clear)[0]).getpixel((4, 4)) == (255, 255, 255)
    for mode, file_format in (("CMYK", "JPEG"), ("L", "PNG"), ("P", "GIF"), ("1", "PNG"), ("I;16", "PNG")):
        assert opened(thumbnail(file_of(Image.new(mode, (9, 9)), file_format))[0]).size == (9, 9)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(None, "null"), (b"", "decode: empty"), (b"words", "decode: not an image"),
     (noise_image(0)[:-900], "decode: truncated JPEG")],
)  # fmt: skip
def test_a_file_that_cannot_be_decoded_has_the_reason_that_scoring_gives(data: bytes | None, reason: str) -> None:
    assert thumbnail(data) == (None, reason)


def test_what_cannot_be_is_told(
    spark: SparkSession, interpreted: None, scores: DataFrame, images: DataFrame, tmp_path: Path
) -> None:
    def told(error: type[Exception], match: str, **changed: Any) -> None:
        given = {"scores": scores, "images": images, "key": ["site", "path"], "out": tmp_path / "page.html"}
        with pytest.raises(error, match=match):
            sa.review(**(given | changed))

    for n in (0, 10_001, "24", 2.5, True, None):
        told(OptionError, r"n=.*: expected a whole number of images from 1 to 10000", n=n)
    for cut in (float("nan"), "5", True):
        told(OptionError, r"cut=.*: expected a finite number", cut=cut)
    for seed in ("x", 1.5, 2**63):
        told(OptionError, r"seed=.*: expected a whole number from -9223372036854775808 to", seed=seed)
    (tmp_path / "file").touch()
    told(OptionError, "a folder that can be written", out=tmp_path / "file" / "page.html")
    told(TableError, "did you mean 'path'", key=["site", "pth"])
    told(TableError, "which the job writes", key=["score"], scores=scores.withColumnRenamed("site", "score"))
    told(TableError, "found binary", key=["site"], scores=scores.withColumn("site", F.lit(b"1")))
    told(TableError, "expected binary", image_col="path")
    told(TableError, "no model 'mine@0' in the scores", model="mine@0")
    told(TableError, "found none", scores=scores.where("site = 4"))
    two = scores.union(spark.createDataFrame([(9, "other", 5.0, None, "mine@0")], SCORES))
    told(TableError, r"found mine@0 \(1 rows\), untrained", scores=two)
    told(TableError, "expected one score for each key", scores=scores.union(scores))
    told(TableError, "expected one image for each key", images=images.union(images))
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "page.html").write_text("labelled for days")
    told(OptionError, "--out .*page.html.: expected no file there, found one. Pass --overwrite to replace it")
    assert (tmp_path / "page.html").read_text() == "labelled for days"
    sa.review(scores, images, key=["site", "path"], out=tmp_path / "page.html", overwrite=True)
    assert about(tmp_path / "page.html")["key"] == ["site", "path"]


def test_the_job_reads_only_the_files_with_sampled_rows_and_prints_one_json_line(
    spark: SparkSession, interpreted: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    large = [(at, bytearray(noise_image(at, width=200, height=200))) for at in range(4)]
    one_a_file = spark.createDataFrame(large, "id int, image binary").repartitionByRange(4, "id")
    one_a_file.write.format("delta").save(f"{tmp_path}/images")
    scored = [(at, at + 0.5, name) for at in range(4) for name in (MODEL, "mine@0")]
    scores = spark.createDataFrame(scored, "id int, aesthetic_score float, aesthetic_model string")
    scores.write.format("delta").save(f"{tmp_path}/scores")
    command = f"review --scores {tmp_path}/scores --images {tmp_path}/images --key id --image-col image --n 1"
    monkeypatch.setattr("sys.argv", [*command.split(), "--model", "mine@0", "--out", f"{tmp_path}/page.html"])
    since = last_query(spark)
    assert submit.run("review", curation.review_once) == 0
    told = json.loads(capsys.readouterr().out)
    size = (tmp_path / "page.html").stat().st_size
    assert told == {
        "out": f"{tmp_path}/page.html", "model": "mine@0", "cut": 1.5, "scored": 4, "unscored": {}, "shown": 1,
        "without_picture": {}, "page_bytes": size,
    }  # fmt: skip
    assert "untrained" not in re.sub("<style>.*?</style>", "", (tmp_path / "page.html").read_text(), flags=re.DOTALL)
    files = [file.stat().st_size for file in (tmp_path / "images").glob("*.parquet")]
    assert len(files) == 4
    assert 0 < bytes_read(spark, since, "image") < sum(files) / 2


# In a browser


@pytest.fixture
def open_page(browser: Any, made: Review) -> Iterator[Callable[..., Any]]:
    """Return a function that opens the page without a network.

    Fail if the page logs anything or requests more than itself.
    """
    contexts, said, asked = [], [], []

    def opening(address: str = f"file://{made.out}", **settings: Any) -> Any:
        context = browser.new_context(offline=True, **({"viewport": {"width": 1280, "height": 800}} | settings))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        return page

    yield opening
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file://", "data:", "blob:"))] == []


def current(page: Any) -> tuple[str, ...]:
    found = page.locator(".tile[aria-selected=true]")
    assert found.count() == 1
    return tuple(json.loads(found.get_attribute("data-key")))


def labelled(page: Any) -> dict[tuple[str, ...], str]:
    tiles = page.eval_on_selector_all(
        "[data-label]", "tiles => tiles.map(tile => [tile.dataset.key, tile.dataset.label])"
    )
    return {tuple(json.loads(key)): label for key, label in tiles if label}


def downloaded(page: Any, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.click("#download")
    file = folder / waiting.value.suggested_filename
    waiting.value.save_as(file)
    return file


def test_keys_mark_and_the_labels_come_back_as_csv(
    scores: DataFrame, made: Review, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page()
    page.keyboard.press("End")
    last = current(page)
    page.keyboard.press("Home")
    assert current(page) == ("2", "39.jpg")
    for key, place in (("j", "38"), ("ArrowRight", "37"), ("h", "38"), ("ArrowLeft", "39")):
        page.keyboard.press(key)
        assert current(page) == ("2", f"{place}.jpg")
    page.keyboard.press("ArrowDown")
    below = current(page)
    page.keyboard.press("ArrowUp")
    assert below != current(page) == ("2", "39.jpg")

    # The keys are pressed in turn, so that every awkward key gets a label.
    for at in range(52):
        page.keyboard.press("kKd"[at % 3])
    assert current(page) == last
    assert page.inner_text("#status") == "52 of 52 marked: 35 keep, 17 drop"
    page.keyboard.press("u")
    page.keyboard.press("u")
    assert page.inner_text("#status") == "50 of 52 marked: 34 keep, 16 drop"
    page.keyboard.press("d")
    page.keyboard.press("Home")
    page.keyboard.press("n")
    assert current(page) == last
    expected = labelled(page)
    assert Counter(expected.values()) == {"keep": 34, "drop": 17}

    file = downloaded(page, tmp_path)
    assert file.name == f"labels-{about(made.out)['id']}.csv"
    with file.open(encoding="utf-8", newline="") as lines:
        header, *rows = csv.reader(lines)
    assert header == ["site", "path", "score", "label"]
    # The page puts an apostrophe before a text that a spreadsheet would take for a formula, and before an apostrophe.
    assert {(site, path.removeprefix("'")): label for site, path, _, label in rows} == expected
    given = {(str(site), path): np.float32(score) for site, path, score, *_ in rows_of_scores() if score is not None}
    assert all(np.float32(score) == given[site, path.removeprefix("'")] for site, path, score, _ in rows)
    assert {(row.site, row.path): row.label for row in _read_csv(scores, str(file)).collect()} == expected

    page.reload()
    assert labelled(page) == expected
    assert page.inner_text("#status") == "51 of 52 marked: 34 keep, 17 drop"


# Some spreadsheet takes each of these for a formula, or direction marks would turn it around.
FORMULAS = [
    "=1+1",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\uff1d1",
    "'=1",
    "''",
    "'",
    "-5",
    "0",
    "photo\u202egpj.exe",
    "x'=1",
]


def test_no_label_is_a_formula_in_a_spreadsheet_and_calibrate_reads_the_same_keys(
    spark: SparkSession, interpreted: None, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [(name, 5.0 + at / 10) for at, name in enumerate(FORMULAS)]
    scores = spark.createDataFrame(rows, "`=key` string, aesthetic_score double")
    images = scores.select("`=key`", F.lit(noise_image(0)).alias("image"))
    made = sa.review(scores, images, key="=key", out=tmp_path / "page.html")
    page = open_page(f"file://{made.out}")
    page.keyboard.press("Home")
    for at in range(len(FORMULAS)):
        page.keyboard.press("kd"[at % 2])
    shown = page.eval_on_selector_all(".key", "keys => keys.map(key => key.textContent + key.title)")
    assert "photo\\u202egpj.exe" * 2 in shown
    assert not any("\u202e" in text for text in shown)
    file = downloaded(page, tmp_path)
    with file.open(encoding="utf-8", newline="") as lines:
        header, *cells = csv.reader(lines)
    assert header == ["'=key", "score", "label"]
    assert [key for key, *_ in cells if re.match(r"[=+@\t\r\uff1d]|-(?!5$)", key)] == []
    assert {"-5", "0", "x'=1"} <= {key for key, *_ in cells}
    assert {row["=key"] for row in _read_csv(scores, str(file)).collect()} == set(FORMULAS)
    chosen = sa.calibrate(scores, str(file), min_score=5.5, key="=key")
    assert (chosen.labels_without_score, chosen.labels_repeated) == (0, 0)


def test_the_cut_moves_by_keys_mouse_and_number_and_counts_the_whole_table(
    scores: DataFrame, open_page: Callable[..., Any]
) -> None:
    page = open_page()
    known = [
        float(np.float32(row[2])) for row in rows_of_scores() if row[0] is not None and row[2] == row[2] and row[2]
    ]

    def check(cut: str) -> None:
        kept = sum(score >= float(cut) for score in known)
        assert page.inner_text("#kept-rows") == str(kept)
        assert page.inner_text("#kept-share") == f"{100 * kept / 52:.2f}%"
        assert page.inner_text("#condition") == f"aesthetic_score >= {cut}F"
        assert page.locator(".tile:not(.below)").count() == kept
        assert float(page.input_value("#cut-slider")) == float(cut)

    check("5.00")
    page.focus("#cut-slider")
    page.keyboard.press("ArrowRight")
    check("5.01")
    page.keyboard.press("k")
    assert page.inner_text("#status").startswith("1 of 52")
    page.fill("#cut-number", "4.3")
    check("4.30")
    box = page.locator("#cut-slider").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 8, box["y"] + 40, steps=5)
    page.mouse.up()
    check(f"{float(page.get_attribute('#cut-slider', 'max')):.2f}")
    page.fill("#cut-number", "5.05")
    page.keyboard.press("Enter")
    page.reload()
    check("5.05")


def test_the_policy_refuses_what_is_not_of_the_page(browser: Any, made: Review) -> None:
    page = browser.new_page()
    page.goto(f"file://{made.out}")
    refused = page.evaluate(
        """async () => {
            const refused = [];
            document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.injected = true";
            document.body.append(script, Object.assign(new Image(), {src: "file:///nothing.png"}));
            document.body.setAttribute("style", "color: red");
            await fetch("data:,").catch(() => null);
            await new Promise((done) => setTimeout(done, 50));
            return [...refused.sort(), window.injected ?? "not run"];
        }"""
    )
    page.context.close()
    assert refused == ["connect-src", "img-src", "script-src-elem", "style-src-attr", "not run"]


def test_marks_go_on_where_nothing_can_be_stored(open_page: Callable[..., Any], made: Review, tmp_path: Path) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe sandbox="allow-scripts" width="1000" height="700" src="file://{made.out}"></iframe>')
    page = open_page(f"file://{frame}")
    inside = page.frame_locator("iframe")
    inside.locator("#keep").click()
    assert inside.locator("#status").inner_text() == "1 of 52 marked: 1 keep, 0 drop"
    assert inside.locator("#unkept").is_visible()


def test_a_narrow_screen_has_all_of_it_within_reach(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport={"width": 390, "height": 780}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("scrollY") == 0
    assert page.locator("h1").bounding_box()["y"] < 100
    page.locator(".tile").nth(20).tap()
    for button in ("keep", "drop", "undo", "next"):
        box = page.locator(f"#{button}").bounding_box()
        assert box["height"] >= 40
        assert box["y"] + box["height"] <= 780
        page.tap(f"#{button}")
    assert page.inner_text("#status") == "1 of 52 marked: 1 keep, 0 drop"
    buttons = page.locator(".actions").bounding_box()
    tile = page.locator(".tile[aria-selected=true]").bounding_box()
    assert tile["y"] >= 0
    assert tile["y"] + tile["height"] <= buttons["y"]


# WCAG requires this contrast for text.
READABLE = 4.5

CONTRASTS = """() => {
    const parts = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => parts(color).slice(0, 3).map((part) => part / 255)
        .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
        .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = (element) => {
        const color = getComputedStyle(element).backgroundColor;
        return parts(color)[3] === 0 ? behind(element.parentElement) : color;
    };
    const words = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
        && !element.closest(":disabled")
        && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    return words.map((element) => {
        const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.className || element.id || element.tagName];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_words_can_be_read_and_the_current_image_is_seen(open_page: Callable[..., Any], scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    page.keyboard.press("k")
    page.keyboard.press("d")
    tile = page.locator(".tile[aria-selected=true]")
    assert tile.evaluate("tile => tile === document.activeElement")
    assert tile.evaluate("tile => getComputedStyle(tile).outlineStyle") == "solid"
    page.click("summary")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert [(round(ratio, 2), name) for ratio, name in contrasts if ratio < READABLE] == []
