"""Analyze what quantization does to each layer, and compare levels."""
