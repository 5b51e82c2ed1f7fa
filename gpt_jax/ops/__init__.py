"""Numerical operations, with gradients written by hand."""
