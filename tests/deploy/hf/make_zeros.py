"""Writes a Llama of zeros in bfloat16, whose files take no room on a disk.

  python tests/deploy/hf/make_zeros.py DIR

The sizes are those of Llama 3 8B.
"""

import json
import math
import pathlib
import sys

LLAMA3_8B = dict(
  hidden_size=4096,
  intermediate_size=14336,
  num_hidden_layers=32,
  num_attention_heads=32,
  num_key_value_heads=8,
  vocab_size=128256,
  max_position_embeddings=8192,
)
NUM_FILES = 4


def shapes_of(sizes: dict) -> dict[str, list[int]]:
  """Returns {name of a tensor: shape}."""
  D, F, V = (
    sizes[k] for k in ("hidden_size", "intermediate_size", "vocab_size")
  )
  K = D // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
  matrices = {
    "self_attn.q_proj": [D, D],
    "self_attn.k_proj": [K, D],
    "self_attn.v_proj": [K, D],
    "self_attn.o_proj": [D, D],
    "mlp.gate_proj": [F, D],
    "mlp.up_proj": [F, D],
    "mlp.down_proj": [D, F],
    "input_layernorm": [D],
    "post_attention_layernorm": [D],
  }
  found = {"model.embed_tokens.weight": [V, D], "lm_head.weight": [V, D]}
  for layer in range(sizes["num_hidden_layers"]):
    for name, shape in matrices.items():
      found[f"model.layers.{layer}.{name}.weight"] = shape
  return found | {"model.norm.weight": [D]}


def write(folder: pathlib.Path, sizes: dict) -> tuple[int, int]:
  """Writes the folder; returns the bytes of all tensors, and of the largest."""
  folder.mkdir()
  config = sizes | dict(model_type="llama", tie_word_embeddings=False)
  (folder / "config.json").write_text(json.dumps(config))
  shapes = shapes_of(sizes)
  size_of = lambda name: 2 * math.prod(shapes[name])
  names, table = list(shapes), {}
  for number in range(NUM_FILES):
    file = f"model-{number + 1:05}-of-{NUM_FILES:05}.safetensors"
    header: dict = {}
    at = 0
    for name in names[number::NUM_FILES]:
      end = at + size_of(name)
      header[name] = dict(
        dtype="BF16", shape=shapes[name], data_offsets=[at, end]
      )
      at, table[name] = end, file
    head = json.dumps(header).encode()
    with open(folder / file, "wb") as out:
      out.write(len(head).to_bytes(8, "little") + head)
      out.truncate(8 + len(head) + at)
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": table}))
  return sum(map(size_of, names)), max(map(size_of, names))


if __name__ == "__main__":
  print(write(pathlib.Path(sys.argv[1]), LLAMA3_8B))
