"""A diffusion transformer trained on handwritten digits: small enough to ship, real enough to judge pictures by."""
