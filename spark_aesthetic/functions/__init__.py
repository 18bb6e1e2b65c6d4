"""Column functions, SQL functions and ML stages. Importing them does not import torch."""

from __future__ import annotations

from spark_aesthetic.functions.columns import (
    aesthetic_score,
    aesthetic_score_from_embedding,
    clip_embedding,
    image_embedding,
    score_image,
)

__all__ = ["aesthetic_score", "aesthetic_score_from_embedding", "clip_embedding", "image_embedding", "score_image"]
