"""From conditions and noise to tiles: noise per candidate, solvers, guidance, decoding."""
