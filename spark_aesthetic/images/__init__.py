"""Decode image files to pixels, and encode pixels to embeddings. Uses torch, but not Spark."""

import warnings

with warnings.catch_warnings():
    # open_clip imports this module. In a notebook it warns if there is no ipywidgets, which nothing here needs.
    warnings.filterwarnings("ignore", message="IProgress not found")
    import tqdm.auto  # noqa: F401
