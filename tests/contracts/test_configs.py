"""Every config file and variant is whole, builds, and counts its parameters."""

import ast
import dataclasses
import pathlib
import re

import jax
import pytest

from gpt_jax import cli, config, flops, sharding, tree
from gpt_jax.config import schema
from gpt_jax.models import build_model

ROOT = pathlib.Path(__file__).parents[2]

# config: parameters with the vocabulary that it is known for.
COUNTS = {
  "tiny.py": (None, None),
  "shakespeare_char.py:small": (65, 804_096),
  "shakespeare_char.py:gpu": (65, 10_745_088),
  "warmup_decay.py": (257, 828_672),
  "gpt2.py:124m": (50257, 124_439_808),
  "gpt2.py:350m": (50257, 354_823_168),
  "gpt2.py:774m": (50257, 774_030_080),
  "gpt2.py:1558m": (50257, 1_557_611_200),
  "gpt3.py": (50257, 174_604_259_328),
  "llama.py:mini": (None, None),
  "llama.py:laptop": (None, None),
  "llama.py:1b": (128_256, 1_235_814_400),
  "llama.py:8b": (128_256, 8_030_261_248),
  "llama.py:70b": (128_256, 70_553_706_496),
  "local_global.py:laptop": (None, None),
  "local_global.py:1b": (128_256, 1_235_814_400),
  "gemma3.py:laptop": (None, None),
  "gemma3.py:1b": (262_144, 999_885_952),
  "mla.py:laptop": (None, None),
  "mla.py:v2-lite": (102_400, 15_706_484_224),
  "moe.py:laptop": (None, None),
  "moe.py:fine": (None, None),
  "moe.py:mini": (2048, 2_001_792),
  "moe.py:mini-biases": (2048, 2_001_808),
  "moe.py:8x7b": (32_000, 46_702_792_704),
  "article.py": (None, None),
  "article.py:masked": (None, None),
  "attention.py:base": (37_000, 63_082_496),
  "digits.py:sort": (None, None),
  "translation.py": (None, None),
  "reports.py": (None, None),
  "tutor.py": (None, None),
  "t5.py:laptop": (None, None),
  "t5.py:base": (32_128, 247_577_856),
  "t5.py:v1.0": (32_128, 222_903_552),
  "bert.py:laptop": (None, None),
  "bert.py:base": (30_522, 109_514_298),
  "modernbert.py:laptop": (None, None),
  "modernbert.py:base": (50_368, 149_655_232),
  "tune_chat.py": (None, None),
  "tune_lora.py": (None, None),
  "tune_grpo.py:base": (None, None),
  "tune_grpo.py": (None, None),
  "tune_preference.py:base": (None, None),
  "tune_preference.py:kto": (None, None),
  "distill.py": (None, None),
  "induction.py": (None, None),
  "meals.py": (None, None),
  "sentiment.py": (None, None),
  "sentiment.py:pretrain": (None, None),
  "canaries.py": (257, None),
  "classify.py:laptop": (None, None),
  # BERT's published count with its pooler, and two classes.
  "classify.py:base": (30_522, 109_482_240 + 2 * 769),
  "mup.py:64": (256, 115_008),
  "mup.py:512": (256, 6_425_088),
  "mixture.py": (257, 258_624),
  "isoflop.py:small": (257, 115_072),
  "families.py:causal": (None, 1_066_368),
  "families.py:masked": (None, 1_066_368),
  "families.py:spans": (None, 1_066_880),
  "isoflop.py:large": (257, 426_752),
  "bench.py:tiny": (65, 804_096),
  "bench.py:small": (65, 10_745_088),
  "bench.py:gpt2": (50257, 124_439_808),
  "bench.py:long": (50257, 129_944_832),
  "bench.py:gpt2-gpu": (50257, 124_439_808),
  "bench.py:llama-1b": (128_256, 1_235_814_400),
  "bench.py:llama-3b": (128_256, 3_212_749_824),
  "bench.py:llama-8b": (128_256, 8_030_261_248),
  "bench.py:15m": (32_000, 15_191_712),
  "bench.py:growth": (1024, 541_312),
  "published.py:v5e-16b": (32_000, 15_831_666_688),
  "published.py:v5p-llama2-70b": (32_000, 68_976_648_192),
  "published_gpu.py:h100-mpt-1b": (50_368, 1_315_950_592),
  "published_gpu.py:h200-llama3-8b": (128_256, 8_030_261_248),
}


def load(name: str, **overrides) -> config.Config:
  path, _, variant = name.partition(":")
  file = str(ROOT / "configs" / path)
  name = f"{file}:{variant}" if variant else file
  return config.freeze(cli.load_config(name, overrides))


def model_of(name: str, vocab_size: int | None = None):
  frozen = load(name)
  size = vocab_size or frozen.model.vocab_size or 4096
  model = dataclasses.replace(frozen.model, vocab_size=size)
  if config.has_classes(model):
    model = dataclasses.replace(model, num_classes=2)
  return model


@pytest.mark.parametrize("name", COUNTS)
def test_config_builds_abstractly_and_counts_its_parameters(name):
  vocab_size, expected = COUNTS[name]
  model = model_of(name, vocab_size)
  shapes, _ = build_model(model).abstract_params()
  padding = config.padded_vocab_size(model) - model.vocab_size
  has_one = model.tied_embeddings or config.has_classes(model)
  padding *= model.model_dim * (1 if has_one else 2)
  if model.head == "transform":
    padding += config.padded_vocab_size(model) - model.vocab_size
  counted = tree.count_elements(shapes) - padding
  assert counted == sum(flops.count_parameters(model).values())
  if expected is not None:
    assert counted == expected


def test_a_changed_model_changes_its_count():
  model = model_of("gpt2.py:124m")
  other = dataclasses.replace(model, mlp_dim=model.mlp_dim + 1)
  count = lambda m: sum(flops.count_parameters(m).values())
  assert count(other) != count(model)


def test_every_config_file_is_in_the_table():
  files = {p.name for p in (ROOT / "configs").glob("*.py")}
  named = {name.split(":")[0] for name in COUNTS}
  assert files - {"__init__.py", "base.py"} == named


def test_dataclasses_and_base_hold_the_same_keys():
  from configs import base

  flat = {}
  for name, value in base.get_config().items():
    if hasattr(value, "items"):
      flat |= {f"{name}.{k}": v for k, v in value.items()}
    else:
      flat[name] = value
  assert sorted(flat) == sorted(config.KEYS)


def test_every_base_key_has_a_reason_and_help_shows_it():
  text = cli.config_help()
  for key in config.KEYS:
    found = re.search(rf"^  {re.escape(key)} = .*\n      \w", text, re.M)
    assert found, f"{key} has no reason in base.py"


def listed_options(text: str) -> dict[str, tuple[str, ...]]:
  """Returns {key: options} of a help text."""
  found, key = {}, None
  for line in text.splitlines():
    if match := re.match(r"  ([\w.]+) = ", line):
      key = match[1]
    elif key and re.fullmatch(r" {6}\S+( \| \S+)+", line):
      found[key] = tuple(line.split(" | "))
      found[key] = (found[key][0].strip(), *found[key][1:])
  return found


def test_help_lists_the_options_that_the_table_declares():
  found = listed_options(cli.config_help())
  forms = {key: line.forms for key, line in config.KEYS.items()}
  declared = {key: words for key, words in forms.items() if len(words) > 1}
  assert found == declared and len(found) > 20
  # Written by hand too, a list would be said twice, and differ one day.
  text = (ROOT / "configs" / "base.py").read_text()
  # data/sources has the table of these.
  open_sets = ("interpreter |", "tfds:NAME", "labelled:GLOB")
  by_hand = [
    line
    for line in text.splitlines()
    if " | " in line and not any(words in line for words in open_sets)
  ]
  assert by_hand == []


def test_options_with_parts_are_parsed_when_a_section_is_built():
  c = load("tiny.py", **{"train.batch_ramp": "4@3+2@2"})
  model = dataclasses.replace(
    c.model, remat="save:qkv+attn", rope_scaling="llama3:8:16"
  )
  assert (model.remat.policy, model.remat.names) == ("save", ("qkv", "attn"))
  scaling = model.rope_scaling
  assert (scaling.mechanism, scaling.numbers) == ("llama3", (8.0, 16.0))
  assert c.train.batch_ramp.parts == ((4, 3), (2, 2))
  flat = config.flatten(dataclasses.replace(c, model=model))
  assert flat["model.remat"] == "save:qkv+attn"
  assert {type(flat[k]) for k in ("model.remat", "train.batch_ramp")} == {str}
  again = config.freeze(dataclasses.asdict(c))
  assert again == c and again.train.batch_ramp.parts == ((4, 3), (2, 2))
  with pytest.raises(config.InputError, match="joined by +"):
    dataclasses.replace(model, remat="save:")


# What a section is called where it is read.
OWNERS = {
  "data": ("data",),
  "model": ("model", "config", "c", "m", "model_config"),
  "adapter": ("adapter",),
  "distill": ("distill",),
  "optim": ("optim", "o"),
  "train": ("train", "t"),
  "mesh": ("mesh",),
  "checkpoint": ("checkpoint", "_checkpoint", "options"),
  "eval": ("eval",),
  "sample": ("sample", "s"),
}


def read_keys(sources: list[str]) -> set[str]:
  """Returns "owner.attribute" of every attribute that some source reads."""
  found = set()
  for source in sources:
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.Attribute):
        owner = ast.unparse(node.value).split(".")[-1]
        found.add(f"{owner}.{node.attr}")
  return found


def unread_keys(sources: list[str]) -> list[str]:
  found = read_keys(sources)
  # make_mesh reads its axes by name.
  found |= {f"mesh.{axis}" for axis in sharding.AXES}
  unread = []
  for key in config.KEYS:
    section, _, word = key.rpartition(".")
    owners = OWNERS[section] if section else ("config",)
    if not any(f"{owner}.{word}" in found for owner in owners):
      unread.append(key)
  return unread


def test_every_base_key_is_read_somewhere():
  package = (ROOT / "gpt_jax").rglob("*.py")
  # Checking a key is not reading it; deriving something from it is.
  sources = [
    p.read_text()
    for p in package
    if p.parent.name != "config" or p.name in ("derived.py", "lengths.py")
  ]
  assert unread_keys(sources) == []
  without = [s.replace("router_z_weight", "other") for s in sources]
  assert unread_keys(without) == ["model.router_z_weight"]  # the control


def test_defaults_live_in_base_alone():
  fields = dataclasses.fields(config.Config)
  sections = [schema.section_type(field.type) for field in fields]
  sections = [section for section in sections if section]
  assert len(sections) == 10
  for cls in (config.Config, *sections):
    for field in dataclasses.fields(cls):
      assert field.default is dataclasses.MISSING, field.name


def test_fingerprint_names_what_is_learned_and_nothing_else():
  a = load("tiny.py")
  same = load("tiny.py", **{"mesh.data": "1", "train.log_every_steps": "7"})
  other = load("tiny.py", **{"optim.learning_rate": "0.5"})
  assert config.fingerprint(a) == config.fingerprint(same)
  assert config.fingerprint(a) != config.fingerprint(other)
  assert config.differing_keys(a, other) == [
    f"optim.learning_rate ({a.optim.learning_rate} there, 0.5 here)"
  ]


def test_abstract_parameters_take_no_memory():
  shapes, _ = build_model(model_of("llama.py:70b")).abstract_params()
  assert all(
    isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes)
  )
