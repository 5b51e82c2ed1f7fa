"""Whatever a user or a file may say, it is read or refused in one sentence.

Each target takes what hypothesis makes of a valid input and may raise
InputError alone, of one line. `-m soak` tries each for five minutes.
"""

import json
import os
import pathlib
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.data import folders, sources, tokenizers
from gpt_jax.data.prepare import prepare_data
from gpt_jax.exits import InputError
from gpt_jax.lab.sweep import asked
from gpt_jax.machine import chips
from gpt_jax.runs import metrics, restore

# Seconds that each target is tried for by `-m soak`.
SOAK_SECONDS = float(os.environ.get("GPT_JAX_FUZZ_SECONDS", "300"))
FEW = 40

# What a value can be that it should not, beside what hypothesis draws.
ODD = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-(2**70), 2**70),
  st.floats(),
  st.text(max_size=12),
  st.sampled_from(
    ["", "0", "-1", "1e400", "nan", "9" * 5000, "\0", "\x1b[2J", "\udc80"]
    + ["~", "../..", "/dev/zero", "gs://a/b", "None", "[[[[", "{", "ä" * 300]
  ),
  st.lists(st.integers(), max_size=3),
  st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
PIECES = st.one_of(
  st.text(max_size=8),
  st.sampled_from(
    list(",:*#=[]{}()\\'\"\n\t ") + ["..", "1e9", "-1", "0.5*", "\udcff", "\0"]
  ),
)


@st.composite
def changed_text(draw, *examples: str):
  """A valid text with pieces put in, taken out or doubled."""
  text = draw(st.sampled_from(examples))
  for _ in range(draw(st.integers(0, 4))):
    start = draw(st.integers(0, len(text)))
    stop = draw(st.integers(start, min(len(text), start + 6)))
    text = text[:start] + draw(PIECES) + text[stop:]
  return text


@st.composite
def changed_json(draw, example):
  """A JSON value, some of whose parts are others, missing or doubled."""
  value = json.loads(json.dumps(example))
  for _ in range(draw(st.integers(1, 3))):
    node, key = value, None
    while isinstance(node, (dict, list)) and node:
      keys = sorted(node) if isinstance(node, dict) else range(len(node))
      key = draw(st.sampled_from(list(keys)[:40]))
      if not isinstance(node[key], (dict, list)) or draw(st.booleans()):
        break
      if not node[key]:
        break
      node = node[key]
    if key is None:
      break
    if draw(st.booleans()) or not isinstance(node, dict):
      node[key] = draw(ODD)
    else:
      del node[key]
  return value


def dump(value) -> bytes:
  return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def changed_bytes(draw, data: bytes):
  """Bytes with some overwritten, cut or put in."""
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, len(data)))
    stop = draw(st.integers(at, min(len(data), at + 8)))
    data[at:stop] = draw(st.binary(max_size=8))
  return bytes(data)


class Place:
  """Where the targets' files lie, and the valid ones that they start from."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    text = folder / "a.jsonl"
    rows = [{"text": f"a text {i} of words, äöü", "id": i} for i in range(8)]
    self.lines = b"".join(dump(row) + b"\n" for row in rows)
    text.write_bytes(self.lines)
    values = {"data.source": f"jsonl:{text}", "data.tokenizer": "bpe:270"}
    values |= {"data.dir": str(folder / "prepared")}
    self.overrides = {key: str(v) for key, v in values.items()}
    config = config_lib.freeze(
      cli.load_config("configs/tiny.py", self.overrides)
    )
    made = prepare_data(config.data, lambda line: None)
    self.prepared = pathlib.Path(made.folders[0])
    self.manifest = json.loads((self.prepared / "manifest.json").read_text())
    self.tokenizer = json.loads((self.prepared / "tokenizer.json").read_text())

  def write(self, name: str, data: bytes) -> str:
    path = self.folder / name
    path.write_bytes(data)
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return Place(tmp_path_factory.mktemp("fuzz"))


# Each returns (strategy, target): what is drawn, and what is done with it.


def config_override(place):
  keys = st.sampled_from([*config_lib.KEYS, "model", "data.", "a.b", ""])
  values = st.one_of(
    changed_text("1", "0.5", "true", "None", "adamw", "float32", "1e9", "a:b"),
    ODD.map(str),
  )

  def target(overrides):
    config_lib.freeze(cli.load_config("configs/tiny.py", overrides))

  return st.dictionaries(keys, values, max_size=3), target


def source_spec(place):
  folder = place.folder
  drawn = changed_text(
    "interpreter",
    f"text:{folder}/*.jsonl",
    f"jsonl:{folder}/a.jsonl#text",
    f"0.7*text:{folder}/a.jsonl,0.3*jsonl:{folder}/a.jsonl#id",
    "tfds:tiny:train[:10%]",
    "hf:a/b:train",
  )

  def target(spec):
    for _, part in sources.parse_mixture(spec):
      sources.open_source(part)

  return drawn, target


def json_lines(place):
  drawn = st.one_of(
    changed_bytes(place.lines),
    st.lists(
      changed_json({"text": "a", "id": [1, {"b": None}]}), max_size=3
    ).map(lambda rows: b"\n".join(map(dump, rows))),
  )

  def target(data):
    for suffix in ("jsonl", "json"):
      path = place.write(f"fuzzed.{suffix}", data)
      for document in sources.open_source(f"jsonl:{path}").documents():
        "".join(document.pieces).encode()

  return drawn, target


def manifest(place):
  drawn = st.one_of(
    changed_json(place.manifest).map(dump), changed_bytes(dump(place.manifest))
  )
  whole = (place.prepared / "manifest.json").read_bytes()

  def target(data):
    path = place.prepared / "manifest.json"
    path.write_bytes(data)
    try:
      for found in folders.open_prepared(str(place.prepared)).values():
        found.read(0, found.num_ids)
    finally:
      path.write_bytes(whole)

  return drawn, target


def tokenizer_file(place):
  library = place.tokenizer["library"]
  drawn = st.one_of(
    changed_json(place.tokenizer).map(dump),
    changed_json(library).map(dump),
    changed_bytes(dump(place.tokenizer)),
  )

  def target(data):
    path = place.write("tokenizer.json", data)
    for build in (
      lambda: tokenizers.load(path),
      lambda: tokenizers.build_tokenizer(f"hf:{path}"),
    ):
      try:
        found = build()
        ids = found.encode("A text: äöü </s> 12\n")
        found.decode(ids)
        found.decode_bytes(ids)
      except InputError as error:
        check(error)

  return drawn, target


def metrics_row(place):
  row = {"step": 3, "train/loss": 2.5, "perf/mfu": 0.1}
  good = dump(row)
  drawn = st.lists(
    st.one_of(st.just(good), changed_bytes(good), changed_json(row).map(dump)),
    max_size=5,
  ).map(b"\n".join)

  def target(data):
    path = place.write("metrics.jsonl", data)
    for found in metrics.read_rows(path):
      assert type(found["step"]) is int

  return drawn, target


def topology(place):
  drawn = st.tuples(
    changed_text("v5e:2x4", "v5p:8x8x8", "h100:8x4", "cpu:2", "v6e:16x16"),
    st.integers(-2, 2**65),
  )
  return drawn, lambda drawn: chips.parse_topology(*drawn)


def average(place):
  return changed_text("ema", "last:3", "last:10"), restore.read_average


def sweep_file(place):
  names = ["optim.learning_rate", "learning_rate", "seed", "model.model_dim"]
  values = st.one_of(ODD, st.sampled_from([1e-3, 64, "cosine"]))
  call = st.tuples(
    st.dictionaries(st.sampled_from([*names, "x", "data"]), values, max_size=2),
    st.one_of(st.none(), st.just([0, 1]), ODD),
    st.one_of(st.none(), ODD),
  )

  def target(calls):
    lines = ["import math", "nan, inf = math.nan, math.inf"]
    lines += ["from configs import base", "def get_config():"]
    lines += ["  config = base.get_config()"]
    for key, text in place.overrides.items():
      lines.append(f"  config.{key} = {text!r}")
    lines += ["  return config", "def sweep(add):", "  pass"]
    for values, seeds, trunk in calls:
      more = "" if seeds is None else f", seeds={seeds!r}"
      more += "" if trunk is None else f", branch_from={trunk!r}"
      lines.append(f"  add({values!r}{more})")
    path = place.write(
      "swept.py", "\n".join(lines).encode("utf-8", "surrogatepass")
    )
    asked.load(path, {})

  return st.lists(call, max_size=3), target


TARGETS = (
  config_override,
  source_spec,
  json_lines,
  manifest,
  tokenizer_file,
  metrics_row,
  topology,
  average,
  sweep_file,
)


def check(error: InputError) -> None:
  """An error of the user's is one line, without what a terminal obeys."""
  text = str(error)
  assert text and len(text.splitlines()) == 1, text
  assert text.isprintable(), text
  assert len(text) < 2_100, text[:200]


def fuzz(target, drawn, count: int, seed: int) -> None:
  """Tries `count` draws; raises what is no sentence."""

  @hypothesis.settings(
    max_examples=count,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
  )
  @hypothesis.seed(seed)
  @hypothesis.given(drawn)
  def trial(value):
    try:
      target(value)
    except InputError as error:
      check(error)

  trial()


@pytest.mark.parametrize("make", TARGETS, ids=lambda f: f.__name__)
def test_a_few_odd_inputs_end_in_a_sentence(place, make):
  drawn, target = make(place)
  fuzz(target, drawn, FEW, 0)


@pytest.mark.soak
@pytest.mark.parametrize("make", TARGETS, ids=lambda f: f.__name__)
def test_minutes_of_odd_inputs_end_in_sentences(place, make):
  drawn, target = make(place)
  deadline, rounds = time.monotonic() + SOAK_SECONDS, 0
  while time.monotonic() < deadline:
    rounds += 1
    fuzz(target, drawn, 500, rounds)
  print(f"\n{make.__name__}: {500 * rounds:,} inputs")


def test_an_error_that_is_no_sentence_is_seen(place):
  """The control: other errors, and sentences without a word, are found."""
  with pytest.raises(ZeroDivisionError):
    fuzz(lambda x: 1 // (x // 2**40), st.integers(), 50, 0)

  def silent(x):
    raise InputError("")

  with pytest.raises(AssertionError):
    fuzz(silent, st.integers(), 2, 0)
