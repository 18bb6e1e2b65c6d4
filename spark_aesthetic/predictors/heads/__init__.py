"""Folded affine heads as package data: one safetensors file per predictor, written by tools/make_heads.py."""
