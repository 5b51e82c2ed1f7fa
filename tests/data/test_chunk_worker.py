"""What a process that encodes chunks does beside it."""

import io
import json

from gpt_jax.data import (
  chunk_worker,
  chunks,
  merging,
  prepare,
  tokenizers,
  workers,
)
from gpt_jax.machine import cores


def test_a_worker_gives_back_what_a_chunk_took(corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
  for i in range(2):
    (tmp_path / f"{i}.txt").write_text(f"text {i} " * 200)
  spec = f"text:{tmp_path}/*.txt"
  (part,) = prepare.list_parts(corpus([], source=spec))
  wanted = merging.find_chunks(part)[:2]
  plan = chunks.Plan("0" * 12, "f" * 64, "uint16", len(wanted), "document")
  encoder = tokenizers.build_tokenizer("bytes")
  (tmp_path / workers.TOKENIZER).write_text(encoder.to_json())
  job = {"spec": spec, "folder": str(tmp_path), "plan": plan, "key": None}
  asked = [[chunk.index, chunk.units] for chunk in wanted]
  lines = "".join(json.dumps(line) + "\n" for line in (job, *asked))
  monkeypatch.setattr(chunk_worker.sys, "stdin", io.StringIO(lines))
  order = []
  monkeypatch.setattr(cores, "give_back", lambda: order.append("given back"))
  chunk_worker._work(lambda **said: order.extend(said))
  done = [word for word in order if word != "bytes"]
  assert done == ["given back", "done"] * 2
