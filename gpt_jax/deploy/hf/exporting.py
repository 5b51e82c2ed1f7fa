"""A run becomes a folder that transformers opens by from_pretrained."""

import functools
import json
import os
from typing import Any

import jax
import numpy as np

from gpt_jax import cli, files, tree
from gpt_jax import config as config_lib
from gpt_jax.config import InputError, Template
from gpt_jax.data import marks
from gpt_jax.data.labels import Labels
from gpt_jax.data.tokenizers import Tokenizer, limits
from gpt_jax.deploy.hf import (
  architectures,
  chat_templates,
  encoders,
  layout,
  stated,
  tensors,
)
from gpt_jax.deploy.hf.folders import whole_folder
from gpt_jax.machine import processes
from gpt_jax.models import Model

# Usual spellings of the tokens of some roles.
PADS = ("[PAD]", "<pad>")
ROLES = {
  "unk": ("[UNK]", "<unk>"),
  "pad": PADS,
  "cls": ("[CLS]",),
  "sep": ("[SEP]",),
  "mask": ("[MASK]", "<mask>"),
}


def export_model(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  out: str,
  max_shard_bytes: int = tensors.MAX_SHARD_BYTES,
  template: Template | None = None,
  labels: Labels | None = None,
) -> str:
  """Writes config.json, safetensors and tokenizer; returns the model_type.

  Args:
    out: folder, must not exist yet.
    max_shard_bytes: most bytes of a file of tensors.
    template: of chats that the run was tuned on; None is the tokenizer's own.
    labels: of a classifier; None names its classes by numbers.

  Raises:
    InputError: no architecture of the hub has this model, or its tokenizer
      cannot be written; nothing is written then.
  """
  if processes.count() > 1:
    raise InputError("a model is exported by one process; start one")
  defaults = config_lib.freeze(cli.load_config("configs/base.py", {})).model
  word = stated.choose(model.config, defaults)
  found = architectures.ARCHITECTURES[word]
  library = describe_tokenizer(tokenizer)
  params = model.restore_matrices(params)
  flat = tree.flatten_with_names(params)
  shapes = {name: leaf.shape for name, leaf in flat.items()}
  entries = layout.list_entries(found, model.config, shapes)
  if not model.config.tied_embeddings:
    # Only where transformers ties the tables, it also ties a bias's two names.
    twin = lambda name: name.removesuffix(".bias") + layout.TWIN
    both = [e for e in entries if twin(e.name) in found.ignored]
    entries += [e._replace(name=twin(e.name)) for e in both]
    entries += [entries[0]._replace(name=copy) for copy in found.copies]
  texts = _describe(word, model, tokenizer, library, template)
  if labels is not None and config_lib.has_classes(model.config):
    texts["config.json"] |= encoders.write_labels(labels)
  dtype = np.dtype(model.config.param_dtype)
  planned = [
    tensors.Planned(e.name, dtype, e.shape, functools.partial(_gather, flat, e))
    for e in entries
  ]
  with whole_folder("--out", out) as partial:
    tensors.write_folder(partial, planned, max_shard_bytes)
    for name, content in texts.items():
      text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
      files.write_text(os.path.join(partial, name), text)
  return found.model_type or word


def _gather(flat: dict[str, jax.Array], entry: layout.Entry) -> np.ndarray:
  """Returns the array of a tensor of the hub's layout."""

  def one(part: layout.Part) -> np.ndarray:
    leaf = flat[part.path]
    for i in part.at:
      leaf = leaf[i]
    array = np.asarray(leaf)
    return array[: part.shape[0]] if part.path in layout.TABLES else array

  return entry.give([one(part) for part in entry.parts])


def describe_tokenizer(tokenizer: Tokenizer) -> dict:
  """Returns the content of a tokenizer.json for a tokenizer of ours.

  Raises:
    InputError: the tokenizer has none.
  """
  content = json.loads(tokenizer.to_json())
  if content["kind"] == "library":
    return content["library"]
  if content["kind"] == "chars":
    vocab = {c: i for i, c in enumerate(content["characters"])}
    return _letters(vocab, None, {"type": "Fuse"})
  letters = limits.byte_characters()
  vocab = {letters[byte]: byte for byte in range(256)}
  split = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
  }
  library = _letters(vocab, split, split)
  assert tokenizer.separator_id is not None  # of bytes it is the last
  library["added_tokens"] = [_special(tokenizer.separator_id, "<|endoftext|>")]
  return library


def _ends(tokenizer: Tokenizer) -> dict[str, int]:
  """Returns {role: id} of the tokens that begin and end a text."""
  starts = tokenizer.start_ids[:1] or (tokenizer.separator_id,)
  ends = {"bos_token": starts[0], "eos_token": tokenizer.separator_id}
  return {role: i for role, i in ends.items() if i is not None}


def describe_roles(
  tokenizer: Tokenizer, library: dict
) -> dict[str, str | None]:
  """Returns {role: token} of a tokenizer_config.json.

  Args:
    library: describe_tokenizer's.
  """
  texts = {t["id"]: t["content"] for t in library["added_tokens"]}
  roles = {role: texts.get(i) for role, i in _ends(tokenizer).items()}
  for role, words in ROLES.items():
    roles |= {f"{role}_token": w for w in words if w in texts.values()}
  return roles


def _letters(vocab: dict[str, int], pre_tokenizer, decoder) -> dict:
  """Returns a tokenizer.json that gives each letter a token."""
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": pre_tokenizer,
    "post_processor": None,
    "decoder": decoder,
    "model": {"type": "BPE", "vocab": vocab, "merges": []},
  }


def _special(i: int, content: str) -> dict:
  words = "single_word", "lstrip", "rstrip", "normalized"
  flags = dict.fromkeys(words, False)
  return {"id": i, "content": content, **flags, "special": True}


def _describe(
  word: str,
  model: Model,
  tokenizer: Tokenizer,
  library: dict,
  template: Template | None,
) -> dict[str, dict]:
  """Returns {name: content} of the JSON files beside the tensors."""
  config = stated.write_model(word, model.config)
  config["torch_dtype"] = model.config.param_dtype
  # Without these keys, a class's default id may lie outside the vocabulary.
  config |= dict.fromkeys(("bos_token_id", "eos_token_id"))
  pads = {t["id"] for t in library["added_tokens"] if t["content"] in PADS}
  config["pad_token_id"] = min(pads, default=None)
  ids = {f"{role}_id": i for role, i in _ends(tokenizer).items()}
  if config_lib.has_source(model.config):
    start, end = marks.pair_ids(tokenizer)
    pad = start if config["pad_token_id"] is None else config["pad_token_id"]
    ids |= {"decoder_start_token_id": start, "pad_token_id": pad}
    ids["eos_token_id"] = end
  named: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": model.config.max_len,
    "clean_up_tokenization_spaces": False,
  }
  named |= describe_roles(tokenizer, library)
  named |= chat_templates.describe(template, tokenizer)
  generation: dict[str, Any] = dict(ids)
  end = chat_templates.end_id(template, tokenizer)
  if end is not None and end != ids.get("eos_token_id"):
    ends = end, ids.get("eos_token_id")
    generation["eos_token_id"] = [i for i in ends if i is not None]
  return {
    "config.json": config | ids,
    "generation_config.json": generation,
    "tokenizer.json": library,
    "tokenizer_config.json": named,
  }
