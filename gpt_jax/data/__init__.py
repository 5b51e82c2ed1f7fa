"""On what is it learned: text sources, tokenizers, prepared shards, batches.

The room is read in the order tokenizer, unpack, sources, manifest, integrity,
store, order, pipeline. No iterator state exists anywhere: a batch is a pure
function of (seed, step), so that a resumed run, or one on another number of
processes, reads the same.
"""
