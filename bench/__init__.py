"""Measurements: what the package does on real architectures, beside others."""
