"""Tiny random models that exercise the shapes of real diffusion transformers without any download."""
