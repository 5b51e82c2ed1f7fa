"""The data of a run: text sources, tokenizers, prepared shards, batches.

To follow a token, read sources, tokenizers, splitting, vocabulary, shards,
chunks, workers, merging, writing, prepare, order, batches. There is no iterator
state: a batch is a pure function of (seed, step), so a resumed run, or one on
another number of processes, reads the same batches.
"""
