"""Make and read the rows and weights that all contestants share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import Predictor
from spark_aesthetic.testing import photographs

# A row group of Spark's default size contains about this many embeddings.
_ROWS_A_GROUP = 40_000


def write_photographs(folder: Path, count: int, width: int, height: int, *, files: int = 4, copies: int = 1) -> None:
    """Write different JPEGs of one size: seeded crops of real photographs, some mirrored, with sensor noise.

    Each is written `copies` times, under different names.
    """
    folder.mkdir(parents=True)
    originals = [Image.open(BytesIO(data)).convert("RGB") for data in photographs().values()]
    for number, seeds in enumerate(np.array_split(np.arange(count), files)):
        images = [_photograph(originals, int(seed), width, height) for seed in seeds]
        names = [f"{width}x{height}-{seed:05d}-{copy}" for copy in range(copies) for seed in seeds]
        table = pa.table({"name": names, "image": pa.array(copies * images, pa.binary())})
        pq.write_table(table, folder / f"part-{number}.parquet", compression="none")


def _photograph(originals: list[Image.Image], seed: int, width: int, height: int) -> bytes:
    random = np.random.default_rng(seed)
    image = originals[seed % len(originals)]
    part = random.uniform(0.6, 1.0)
    across, down = int(image.width * part), int(image.height * part)
    left, top = random.integers(0, image.width - across + 1), random.integers(0, image.height - down + 1)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + across, top + down))
    if random.integers(2):
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    noisy = np.asarray(resized, dtype=np.int16) + random.integers(-5, 6, (height, width, 3), dtype=np.int16)
    file = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_embeddings(folder: Path, count: int, dimension: int, *, files: int = 4) -> None:
    """Write random float32 embeddings of length 1, in pages like Spark's."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(files):
        rows = random.standard_normal((count // files, dimension), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        offsets = pa.array(np.arange(0, rows.size + 1, dimension, dtype=np.int32))
        column = pa.ListArray.from_arrays(offsets, pa.array(rows.ravel()))
        # If all values differ, pyarrow still begins with a dictionary of up to 1 MB; Spark's writer does not.
        pq.write_table(
            pa.table({"embedding": column}),
            folder / f"part-{number}.parquet",
            row_group_size=_ROWS_A_GROUP,
            use_dictionary=False,
        )


def write_model(folder: Path, predictor: Predictor, config: dict[str, object] | None) -> None:
    """Write the seeded weights of an untrained predictor in the files that `peer_model` reads."""
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    from spark_aesthetic.images.prepare import seeded_tower

    (folder / "configs").mkdir(parents=True)
    if config is not None:
        (folder / "configs" / f"{predictor.backbone}.json").write_text(json.dumps(config))
        import open_clip

        open_clip.add_model_config(folder / "configs")
    pinned = weights.pin(predictor)
    head = weights.load_head(pinned)
    (folder / "model.json").write_text(json.dumps({"architecture": predictor.backbone}))
    save_file(seeded_tower(pinned), folder / "visual.safetensors")
    bias = np.asarray(head.bias, dtype=np.float32).reshape(())
    save_arrays({"weight": np.asarray(head.weight, dtype=np.float32), "bias": bias}, folder / "head.safetensors")


def read_images(data: str) -> list[bytes]:
    """Read all images of a folder, in the order of their names."""
    table = pq.read_table(data, columns=["name", "image"]).sort_by("name")
    return [image.as_py() for image in table["image"]]


def read_scores(out: str) -> dict[str, float]:
    """Read the scores that a contestant wrote for images, by name."""
    table = pa.concat_tables(pq.read_table(file).select(["name", "score"]) for file in _parquet(out))
    return dict(zip(table["name"].to_pylist(), table["score"].to_pylist(), strict=True))


def _parquet(out: str) -> Iterator[Path]:
    return (file for file in sorted(Path(out).rglob("*.parquet")) if "_delta_log" not in file.parts)


def read_embeddings(data: str) -> Iterator[npt.NDArray[np.float32]]:
    """Read embeddings in pyarrow's batches, without a copy."""
    for file in sorted(Path(data).glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(16_384, columns=["embedding"]):
            column = batch.column(0)
            yield column.flatten().to_numpy().reshape(len(column), -1)
