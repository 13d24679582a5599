"""Figures of studies that are no sweeps: one table in, one picture out."""
