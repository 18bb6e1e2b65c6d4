"""Folded affine heads as package data: one safetensors file per head, written by tools/make_heads.py."""
