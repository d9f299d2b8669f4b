"""Banks of conditioning embeddings, and the sources they load from (no torch: an encoder is passed in)."""
