"""Vectors of texts, by a trained model: python -m gpt_jax.embed --help."""

import math
import sys

from gpt_jax import cli, files
from gpt_jax.config import InputError
from gpt_jax.machine import cache, processes, runtime

# Number of texts in a forward pass, before rounding up to the mesh.
BATCH_SIZE = 32


def _build_parser():
  parser = cli.build_parser(
    "embed",
    "Vectors of texts: the mean over a text's tokens of the last layer's "
    "output, of length one.",
    needs_config=False,
  )
  cli.add_run(parser)
  parser.add_argument(
    "--texts",
    required=True,
    metavar="FILE|ADDRESS",
    help="a text a line, or JSON lines whose field text is one",
  )
  parser.add_argument(
    "--out",
    required=True,
    metavar="FILE",
    help="file to write: a NumPy array (.npy), float32, a row a text",
  )
  cli.add_weights(parser)
  return parser


def main(argv: list[str]) -> int:
  args, overrides = cli.parse(_build_parser(), argv)
  runtime.start(args.devices)
  processes.join({"the arguments": argv})

  import io

  import jax
  import numpy as np

  from gpt_jax import sharding
  from gpt_jax.inference import embedding
  from gpt_jax.runs import workdir

  args.out = files.output_path("--out", args.out)
  texts = _read_texts(cache.local(args.texts))
  note, is_speaking = processes.note, processes.index() == 0
  config, model, params, tokenizer, mesh = workdir.open_run(
    args.workdir, overrides, note, args.weights, args.average, args.step
  )
  limit = min(config.data.seq_len, config.model.max_len)
  rows = embedding.encode(tokenizer, texts, limit)
  num_cut = sum(len(ids) == limit for ids in rows)
  if num_cut:
    note(
      f"{num_cut:,} of {len(rows):,} texts fill {limit} tokens (data.seq_len), "
      "where longer ones are cut"
    )
  table = sharding.RULES[config.mesh.rules]
  shards = math.prod(mesh.shape[axis] for axis in table["batch"])
  batch_size = -(-BATCH_SIZE // shards) * shards
  with jax.set_mesh(mesh):
    vectors_ND = embedding.embed(
      model, model.round_weights(params), rows, batch_size
    )
  if is_speaking:
    written = io.BytesIO()
    np.save(written, vectors_ND)
    files.write_bytes(args.out, written.getvalue())
    print(
      f"{args.out} holds {len(rows):,} vectors of {vectors_ND.shape[1]} numbers"
    )
  return 0


def _read_texts(path: str) -> list[str]:
  """Returns the texts of a file, none of them empty.

  Raises:
    InputError: it cannot be read, or holds no text, or an empty one.
  """
  from gpt_jax.data.sources import document, jsonl, unpack

  hint = "name it text"
  if unpack.bare_name(path).endswith(jsonl.SUFFIXES):
    found = [
      (number, jsonl.text_of(value, "text", f"{path}, text {number}", hint))
      for number, value in jsonl.read_values(path)
    ]
  else:
    found = [
      (number, document.decode(line, f"{path}, line {number}").strip())
      for number, line in jsonl.read_lines(path)
    ]
    while found and not found[-1][1]:  # the last line's end
      found.pop()
  if not found:
    raise InputError(f"{path} holds no text; it must hold some")
  for number, text in found:
    if not text:
      raise InputError(
        f"{path} has an empty text, its number {number}; each must have some"
      )
  return [text for _, text in found]


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
