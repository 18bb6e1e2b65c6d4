"""CLIP and a linear head, written as users of open_clip do; all peers use them, with this package's weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from time import sleep, time
from typing import Any

import numpy as np
import numpy.typing as npt

_loaded: dict[str, Any] = {}


def load(folder: str) -> Any:
    """Load model, transform and head from a folder that `inputs.write_model` wrote, once per process."""
    if folder not in _loaded:
        import open_clip
        import torch
        from safetensors.torch import load_file

        # Two processes on two cores are faster with one thread each than with two threads each.
        torch.set_num_threads(1)
        about = json.loads((Path(folder) / "model.json").read_text())
        open_clip.add_model_config(Path(folder) / "configs")
        model, _, transform = open_clip.create_model_and_transforms(about["architecture"])
        model.visual.load_state_dict(load_file(Path(folder) / "visual.safetensors"))
        model.eval()
        head = load_file(Path(folder) / "head.safetensors")
        _loaded[folder] = model, transform, head
    return _loaded[folder]


def begin(folder: str, processes: int) -> None:
    """Record that this process has loaded the model; on its first call, wait until all processes have.

    Without the wait, the second process would load its imports and model while the first is timed.
    """
    mine = Path(folder) / f"begun-{os.getpid()}"
    if mine.exists():
        return
    mine.touch()
    ends = time() + 120
    while len(_begun(folder)) < processes:
        if time() > ends:
            raise TimeoutError(f"expected {processes} processes to begin, found {len(_begun(folder))}")
        sleep(0.01)


def seconds_since_begin(query: Callable[[], object], folder: str) -> float:
    """Run a query with processes that call `begin`; return the seconds since the last of them was ready."""
    for file in _begun(folder):
        file.unlink()
    query()
    return time() - max(file.stat().st_mtime for file in _begun(folder))


def _begun(folder: str) -> list[Path]:
    return list(Path(folder).glob("begun-*"))


def score(folder: str, images: list[bytes]) -> npt.NDArray[np.float32]:
    """Score one batch as users of open_clip do."""
    import torch
    from PIL import Image

    model, transform, head = load(folder)
    batch = torch.stack([transform(Image.open(BytesIO(data))) for data in images])
    with torch.inference_mode():
        embeddings = model.encode_image(batch, normalize=True)
        scores: npt.NDArray[np.float32] = (embeddings @ head["weight"] + head["bias"]).numpy()
    return scores
