"""Trains the models that synthfactory runs, from WebDataset shards; exports model folders that a spec can name."""
