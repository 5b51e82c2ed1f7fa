"""A model of the hub becomes a workdir that generate, evaluate and train read.

Arrays are read one by one, and each device's shard of them on its own, so that
the host never holds more than the shards of its devices and one tensor.
"""

import os
from typing import Any

import jax

from gpt_jax import cli, sharding, tree
from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.data import tokenizers
from gpt_jax.data.labels import Labels
from gpt_jax.data.tokenizers.subword import LibraryTokenizer
from gpt_jax.deploy.hf import adapters, encoders, layout, stated, tensors
from gpt_jax.deploy.hf.folders import whole_folder, write_run
from gpt_jax.machine import processes
from gpt_jax.models import build_model

# Largest data.seq_len of the run, which evaluation and further training read.
MAX_SEQ_LEN = 2048
# In place of a fingerprint of data: the model was trained elsewhere.
NO_DATA = "imported"
# The run's data.objective, by model.family.
OBJECTIVES = {
  "decoder": "causal",
  "encoder": "masked_lm",
  "encoder_decoder": "sequence_to_sequence",
}
# Files of a folder that are read beside its tensors.
SMALL = (
  *("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
  *("merges.txt", "chat_template.jinja", "sentence_bert_config.json"),
)
# A classifier's data.source, unless a command names a file of labelled texts.
LABELLED = "labelled:texts.jsonl"


def import_model(
  source: str,
  workdir: str,
  tokenizer: str | None = None,
  param_dtype: str | None = None,
  adapter: str | None = None,
) -> Config:
  """Writes a workdir with a model of the hub's layout; returns its config.

  Args:
    source: folder with config.json, safetensors and the tokenizer's files.
    workdir: must not exist yet.
    tokenizer: a data.tokenizer in place of the folder's.
    param_dtype: float32 or bfloat16. None: bfloat16 if most of the tensors are
      and no scale is stored less one, otherwise float32.
    adapter: folder of a LoRA adapter in PEFT's format, to be merged.

  Raises:
    InputError: the folder is incomplete or damaged, or the model cannot be
      represented; nothing is written then.
  """
  if processes.count() > 1:
    raise InputError("a model is imported by one process; start one")
  tensors.refuse_links(source, SMALL)
  where = os.path.join(source, "config.json")
  read = tensors.read_object(where)
  found = stated.find(read, where)
  opened = tensors.open_folder(source)
  sizes = stated.sizes_of(tensor.shape for tensor in opened.values())
  fields = stated.read_model(read, sizes, where)
  fields |= {
    switch: any(name.endswith(end) for name in opened)
    for end, switch in found.held
  }
  words = tokenizers.build_tokenizer(tokenizer or _find_tokenizer(source))
  if fields.get("family") == "encoder_decoder":
    if not isinstance(words, LibraryTokenizer):
      raise InputError(
        f"the model of {source} reads sources, and the tokenizer {words.name} "
        "has no ids for where a target begins and ends; give a tokenizer.json"
      )
    words = words.with_pairs(*stated.read_pair_ids(read, where))
  elif isinstance(words, LibraryTokenizer):
    words = words.with_start()
  has_offsets = any(row.form == "offset" for row in found.rows)
  labels = None
  if "num_classes" in fields:
    labels = encoders.read_labels(read, where)
  config = _build_config(
    workdir,
    fields,
    opened,
    param_dtype,
    has_offsets,
    where,
    _max_seq_len(source),
    labels,
  )
  if words.vocab_size > config_lib.vocab_size(config.model):
    raise InputError(
      f"the tokenizer of {source} has {words.vocab_size} tokens and its model "
      f"{config.model.vocab_size}; they do not belong together"
    )
  mesh = sharding.make_mesh(config.mesh)
  model = build_model(config.model, config.mesh.rules)
  shapes, specs = model.abstract_params()
  flat = tree.flatten_with_names(shapes)
  entries = layout.list_entries(
    found, config.model, {name: leaf.shape for name, leaf in flat.items()}
  )
  matched = layout.match(entries, opened, found, source)
  if adapter is not None:
    matched = adapters.merge(adapter, entries, matched)
  places = sharding.shardings_of(shapes, specs, config.mesh.rules, mesh)
  abstract = sharding.abstract_of(shapes, specs, config.mesh.rules, mesh)
  make = lambda: _read_params(shapes, places, entries, matched)
  with whole_folder("--workdir", workdir) as partial:
    write_run(partial, config, make, words, NO_DATA, labels, abstract=abstract)
  return config


def _find_tokenizer(source: str) -> str:
  has = lambda name: os.path.lexists(os.path.join(source, name))
  if has("tokenizer.json"):
    return f"hf:{os.path.join(source, 'tokenizer.json')}"
  if has("vocab.json") and has("merges.txt"):
    return f"gpt2:{source}"
  raise InputError(
    f"{source} has no tokenizer.json; give --tokenizer=hf:PATH, gpt2:PATH or "
    "bytes"
  )


def _max_seq_len(source: str) -> int:
  """Returns the most tokens that a row of the run has."""
  where = os.path.join(source, "sentence_bert_config.json")
  if not os.path.lexists(where):
    return MAX_SEQ_LEN
  own = tensors.read_object(where).get("max_seq_length")
  if own is not None and (type(own) is not int or own < 1):
    raise InputError(
      f"{where} has max_seq_length {own!r:.60}; it must be a number of tokens"
    )
  return min(own or MAX_SEQ_LEN, MAX_SEQ_LEN)


def _build_config(
  workdir: str,
  fields: dict[str, Any],
  opened: dict[str, tensors.Tensor],
  param_dtype: str | None,
  has_offsets: bool,
  where: str,
  max_seq_len: int,
  labels: Labels | None,
) -> Config:
  """Returns the config of the run that the workdir will be."""
  types = [str(tensor.dtype) for tensor in opened.values()]
  stored = max(set(types), key=types.count)
  is_half = stored in ("bfloat16", "float16")
  values = cli.load_config("configs/base.py", {})
  values.model.update(fields)
  # A scale that is stored as scale - 1 would be rounded in bfloat16.
  is_narrow = stored == "bfloat16" and not has_offsets
  values.model.param_dtype = param_dtype or (
    "bfloat16" if is_narrow else "float32"
  )
  values.model.compute_dtype = "bfloat16" if is_half else "float32"
  values.data.objective = OBJECTIVES[values.model.family]
  if labels is not None:
    values.data.objective, values.data.label = "classification", labels.kind
    values.data.source = LABELLED
  values.data.seq_len = min(values.model.max_len, max_seq_len)
  path = os.path.join(os.path.abspath(workdir), "tokenizer.json")
  values.data.tokenizer = f"hf:{path}"
  try:
    return config_lib.freeze(values)
  except InputError as error:
    raise InputError(f"{where} cannot be represented: {error}") from None


def _read_params(shapes, places, entries, matched) -> Any:
  sources = {
    (part.path, part.at): (entry, part, matched[entry.name])
    for entry in entries
    for part in entry.parts
  }

  def read(name: str, leaf, place):
    def part(index):
      return layout.read_part(name, index, leaf.shape, leaf.dtype, sources)

    return jax.make_array_from_callback(leaf.shape, place, part)

  flat = tree.flatten_with_names(shapes)
  leaves = [
    read(name, leaf, place)
    for (name, leaf), place in zip(
      flat.items(), jax.tree.leaves(places), strict=True
    )
  ]
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
