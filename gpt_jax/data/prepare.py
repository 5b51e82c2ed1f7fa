"""Prepares the text of a config: finds its prepared folders, or writes them."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable

from gpt_jax import config as config_lib
from gpt_jax import digest, encryption, files
from gpt_jax.config import Config, DataConfig, Template
from gpt_jax.data import (
  chunks,
  folders,
  jinja,
  overlap,
  sources,
  stores,
  tokenizers,
  vocabulary,
)
from gpt_jax.data import labels as labels_lib
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.data.labels import Labels, some
from gpt_jax.data.manifest import SPLITS
from gpt_jax.data.shards import TokenSet
from gpt_jax.data.sources.document import Divisible
from gpt_jax.data.splitting import Part
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.data.writing import Job, find_or_write, write_shard
from gpt_jax.exits import InputError
from gpt_jax.machine import places

# The start of a run reports an overlap above this share of the held-out ids.
OVERLAP_SHARE = 1e-3


@dataclasses.dataclass(frozen=True)
class PreparedData:
  """The prepared sets that a run reads.

  Attributes:
    train: (weight, set) of each source; the weights sum to 1.
    valid: held-out sets by name ("valid" if there is one); empty sets are left
      out.
    folders: the prepared folders of these sets.
  """

  train: list[tuple[float, TokenSet]]
  valid: dict[str, TokenSet]
  folders: list[str]

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer that all sets share, loaded on first use."""
    return folders.load_tokenizer(self.folders[0])

  @property
  def tokenizer_path(self) -> str:
    """The file that `tokenizers.load` reads."""
    return os.path.join(self.folders[0], "tokenizer.json")

  @property
  def labels(self) -> Labels | None:
    """The labels, the same in all sets; None if the objective has none."""
    return self.train[0][1].labels

  @property
  def vocab_size(self) -> int:
    return self.train[0][1].vocab_size

  def resolve_vocab(self, config: Config) -> Config:
    """Returns the config with model.vocab_size filled in, or checked.

    Likewise model.num_classes, if there are labels.

    Raises:
      InputError: model.vocab_size is too small, or model.num_classes is not the
        number of classes.
    """
    if self.labels is not None:
      config = resolve_classes(config, self.labels)
    marks = tokenizers.num_marks(config)
    is_masked = config.data.objective == "masked_lm"
    if is_masked and self.tokenizer.mask_id is not None:
      marks = 0  # a tokenizer with a mask of its own needs no other
    has_two = config.data.objective in (
      "sequence_to_sequence",
      "classification",
      "grpo",
    )
    if has_two and self.tokenizer.pair_ids is not None:
      marks = 0  # nor another start and end
    return tokenizers.resolve_vocab(config, self.vocab_size + marks)

  @property
  def separator_id(self) -> int | None:
    return self.train[0][1].separator_id

  @property
  def fingerprint(self) -> str:
    """The SHA-256 hex digest of all ids, held-out sets included."""
    train = [token_set.fingerprint for _, token_set in self.train]
    valid = {name: s.fingerprint for name, s in self.valid.items()}
    # Not digest.of_json, which sorts keys: runs have stored this digest with
    # the held-out sets in the order of the sources.
    return digest.of_text(json.dumps([train, valid]))


def resolve_classes(config: Config, labels: Labels) -> Config:
  """Returns the config with model.num_classes filled in, or checked.

  Raises:
    InputError: it differs from the number of classes of the labels.
  """
  asked, found = config.model.num_classes, labels.num_scores
  if asked not in (None, found):
    raise InputError(
      f"model.num_classes is {asked}, and {config.data.source} has {found} "
      f"({some(labels.classes)}); leave it None"
    )
  model = dataclasses.replace(config.model, num_classes=found)
  return dataclasses.replace(config, model=model)


def prepare_data(
  data: DataConfig,
  say: Callable[[str], None] = print,
  splits: tuple[str, ...] = SPLITS,
  may_make: bool = True,
  num_workers: int | None = None,
) -> PreparedData:
  """Returns the prepared data of a config; missing folders are written first.

  Several processes may call it at once: one of them prepares, the others wait.

  Args:
    data: the config's section.
    say: receives lines of progress, and one for each folder that is written.
    splits: the splits that will be read; large files of these are hashed in
      threads from now on.
    may_make: whether to write missing folders, which reads the text.
    num_workers: processes that encode at most; None for one for each core. The
      folders do not depend on it.

  Raises:
    InputError: a source, the tokenizer or a folder cannot be used, or a folder
      is missing and may not be written.
  """
  mixture = sources.parse_mixture(data.source)
  parts = list_parts(data)
  job, names = _plan_parts(parts, data, say, may_make)
  job.num_workers = num_workers
  made = [
    find_or_write(job, part, name)
    for part, name in zip(parts, names, strict=True)
  ]
  _check_one_tokenizer(made)
  train = weigh(
    [(weight, made[i]["train"]) for i, (weight, _) in enumerate(mixture)],
    data.temperature,
  )
  prepared = PreparedData(
    train, _name_valid_sets(parts, made), [p["train"].folder for p in made]
  )
  trained, held = [s for _, s in train], list(prepared.valid.values())
  # Documents of one source are in one split, unless an earlier version divided
  # them; several sources may share documents.
  may_overlap = len(parts) > 1 or not made[0]["train"].is_apart
  if "train" in splits and held and may_overlap:
    is_new = any(part.is_made for part in parts)
    if is_new or overlap.is_quick([*trained, *held]):
      overlap.report(trained, held, say, OVERLAP_SHARE)
  read = [*(trained if "train" in splits else [])]
  read += held if "valid" in splits else []
  for token_set in read:
    if token_set.check.start():
      size = token_set.check.num_bytes / 1e9
      say(f"checking the hashes of {token_set.name}, {size:.1f} GB, meanwhile")
  return prepared


def weigh(
  train: list[tuple[float, TokenSet]], temperature: float | None
) -> list[tuple[float, TokenSet]]:
  """Returns (share, set) for each (weight, set), as data.temperature says.

  A share, of sequences, is proportional to weight * size^(1 / T), in float64.
  If the temperature T is None, shares are the weights.
  """
  if temperature is None:
    return train
  sizes = [math.log(max(1, one.num_ids)) / temperature for _, one in train]
  largest = max(sizes)
  powers = [math.exp(size - largest) for size in sizes]
  parts = [w * p for (w, _), p in zip(train, powers, strict=True)]
  return [
    (part / sum(parts), one)
    for part, (_, one) in zip(parts, train, strict=True)
  ]


def prepare_shard(
  data: DataConfig,
  index: int,
  count: int,
  say: Callable[[str], None] = print,
  num_workers: int | None = None,
) -> list[str]:
  """Encodes one of `count` shares of a config's text; returns the folders.

  prepare_data merges all shares into the prepared folders, which are byte for
  byte as if it had encoded the text itself.

  Raises:
    InputError: as prepare_data, or the vocabulary depends on all of the text.
  """
  if tokenizers.is_trained(data.tokenizer):
    raise InputError(
      f"data.tokenizer={data.tokenizer} is learned from all of the text, of "
      "which a shard reads a part; learn it once on a sample, and give the "
      "tokenizer.json of that set as hf:PATH"
    )
  parts = list_parts(data)
  job, names = _plan_parts(parts, data, say, may_make=True)
  job.num_workers = num_workers
  return [
    write_shard(job, part, name, index, count)
    for part, name in zip(parts, names, strict=True)
  ]


def prepare_text(
  path_or_spec: str,
  encoder: Tokenizer,
  dir: str,
  split: str = "document",
  say: Callable[[str], None] = print,
  verify: str = "once",
  template: Template | None = None,
  records: str = "chat",
) -> TokenSet:
  """Returns one source, or the file at a plain path, as one set.

  Args:
    path_or_spec: "text:a/*.txt", or just "a.txt"; "a.jsonl" is read as records.
    encoder: the tokenizer of the run that will read the set.
    dir: where prepared folders lie.
    split: "tail" writes no separators between documents.
    say: receives lines of progress.
    verify: as data.verify.
    template: data.template of a run that reads chats or preferences, which the
      source must have; None for one that reads text.
    records: what such a run reads: "chat" or "preference".

  Raises:
    InputError: the text is missing, or the tokenizer cannot encode it.
  """
  spec = sources.spec_of(path_or_spec, "jsonl" if template is None else records)
  if template is not None and sources.parse_spec(spec)[0] != records:
    raise InputError(
      f"{path_or_spec} holds no {records}s, which the run reads; give "
      f"{records}:FILE"
    )
  part = Part(sources.open_source(spec), "valid", split, 0.0, template=template)
  name = folders.name_folder(part, encoder.name, encoder.fingerprint())
  dir, store = _locate(dir)
  say = lambda line, say=say: say(places.rename(line))
  job = Job(dir, lambda: (encoder, {}), say, verify, store=store)
  return find_or_write(job, part, name)["valid"]


def verify_text(
  data: DataConfig, prepared: PreparedData, say: Callable[[str], None] = print
) -> None:
  """Reads the sources again and compares their text with what was prepared.

  Raises:
    InputError: a text differs, although sizes and dates of its files agree.
  """
  for part, folder in zip(list_parts(data), prepared.folders, strict=True):
    manifest = manifest_lib.read(folder)
    key = manifest_lib.text_key(manifest)
    if key is None:
      say(
        f"{folder} was prepared by an older version, which noted no hash of "
        f"its text: whether {part.source.spec} has changed is not known"
      )
    elif _read_digest(part, key, manifest, folder) != manifest[key]:
      raise InputError(
        f"{part.source.spec} does not hold the text that {folder} was made "
        "of, though the sizes and dates of its files agree; remove that "
        "folder, and it is prepared again"
      )


def _read_digest(part: Part, key: str, manifest: dict, folder: str) -> str:
  """Returns the digest of the text of a part, by reading it.

  Args:
    key: what the manifest calls it.
  """
  secret = None
  if "encryption" in manifest:
    secret = encryption.find(manifest["encryption"], folder)
  if key == "text_sha256":
    return chunks.mark(part.read_text_sha256(), secret)
  source = part.source
  assert isinstance(source, Divisible)  # the key is of chunks
  wanted = chunks.divide(source)
  hashes = [chunks.read_text_sha256(source, chunk) for chunk in wanted]
  hashes = [chunks.mark(found, secret) for found in hashes]
  return chunks.text_digest(hashes)


def list_parts(data: DataConfig) -> list[Part]:
  """Returns the parts of a config, in the order of PreparedData.folders.

  Raises:
    InputError: a source cannot be opened, or data.valid_frac leaves no text.
  """
  opened = [
    sources.open_source(spec) for _, spec in sources.parse_mixture(data.source)
  ]
  if not 0 <= data.valid_frac < 1:
    raise InputError(
      f"data.valid_frac is {data.valid_frac}; it must be at least 0 and below "
      "1, so that something is left to train on"
    )
  entry = config_lib.OBJECTIVES[data.objective]
  is_written = data.objective == "chat" or entry.is_preference
  template = data.template if is_written else None
  how = (data.split, data.valid_frac, entry.has_labels, template)
  if data.valid_source is None:
    return [Part(source, "split", *how) for source in opened]
  return [Part(source, "train", *how) for source in opened] + [
    Part(sources.open_source(spec), "valid", *how)
    for _, spec in sources.parse_mixture(data.valid_source)
  ]


def _plan_parts(
  parts: list[Part], data: DataConfig, say, may_make: bool
) -> tuple[Job, list[str]]:
  """Returns (the job, with one tokenizer for all parts; names of folders)."""
  identity = tokenizers.identity(data.tokenizer)
  is_trained = tokenizers.is_trained(data.tokenizer)
  if is_trained:
    rows = [(p.source.fingerprint(), p.role) for p in parts]
    identity = digest.of_json([identity, rows, data.split, data.valid_frac])
  find_labels = None
  if parts[0].is_labelled:
    # The set of classes depends on all training sources.
    rows = [(p.source.fingerprint(), p.role) for p in parts]
    identity = digest.of_json([identity, data.label, rows])
    trained = [p.source for p in parts if p.role != "valid"]
    find_labels = lambda: labels_lib.find_labels(
      data.label, trained, data.source
    )
  template = parts[0].template
  if template is not None and template.name == "tokenizer":
    own = None if is_trained else tokenizers.build_tokenizer(data.tokenizer)
    identity = digest.of_json(
      [identity, jinja.find_template(own, data.tokenizer)]
    )
  key = None if data.key is None else encryption.read_key(data.key)
  names = [folders.name_folder(p, data.tokenizer, identity, key) for p in parts]

  def build():
    if not is_trained:
      encoder = tokenizers.build_tokenizer(data.tokenizer)
      for line in tokenizers.remarks(encoder):
        say(line)
      return encoder, {}
    for name in names:
      path = folders.find_folder(job.dir, name)
      if folders.is_prepared(path):
        job.is_apart = path.endswith(folders.APART)
        notes = manifest_lib.read(path)["tokenizer"]["notes"]
        return folders.load_tokenizer(path), notes
    trained = vocabulary.train_tokenizer(data.tokenizer, parts, say)
    # Documents that moved changed the training text of the vocabulary, too.
    job.is_apart = any(part.num_moved for part in parts)
    return trained

  dir, store = _locate(data.dir)
  say = lambda line, say=say: say(places.rename(line))
  job = Job(
    dir, build, say, data.verify, may_make, find_labels, store=store, key=key
  )
  return job, names


def _locate(dir: str) -> tuple[str, str | None]:
  """Returns (a local folder, the address that it caches or None)."""
  dir = files.user_path("data.dir", dir, may_be_address=True)
  return (stores.local_dir(dir), dir) if files.is_address(dir) else (dir, None)


def _check_one_tokenizer(made: list[dict[str, TokenSet]]) -> None:
  first = made[0]["train"]
  for sets in made[1:]:
    other = sets["train"]
    if other.tokenizer_fingerprint != first.tokenizer_fingerprint:
      raise InputError(
        f"{other.folder} was made with another tokenizer than {first.folder}, "
        "which it is mixed with; remove both, and they are prepared again"
      )


def _name_valid_sets(
  parts: list[Part], made: list[dict[str, TokenSet]]
) -> dict[str, TokenSet]:
  """Returns the held-out sets by names that are short and distinct."""
  held = [
    (folders.slug(part.source.spec), sets["valid"])
    for part, sets in zip(parts, made, strict=True)
    if sets["valid"].num_ids
  ]
  if len(held) == 1:
    return {"valid": held[0][1]}
  slugs = [slug for slug, _ in held]
  return {
    slug if slugs.count(slug) == 1 else f"{slug}-{i}": token_set
    for i, (slug, token_set) in enumerate(held)
  }
