"""Folded affine heads as package data: one safetensors file a predictor, made by tools/make_heads.py."""
