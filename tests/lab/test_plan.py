"""A plan holds what the compiler says, and says what does not fit.

The step is compiled for a real slice of TPUs, on a machine without one.
"""

import dataclasses
import importlib.util
import json
import pathlib
import re
import statistics

import jax
import pytest

from gpt_jax import cli, flops, sharding
from gpt_jax import config as config_lib
from gpt_jax.data import tokenizers
from gpt_jax.lab.plan import (
  analytic,
  aot,
  cost,
  hlo,
  memory,
  planner,
  remedy,
  roofline,
)
from gpt_jax.machine import chips, console
from gpt_jax.training import build, state

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
  "data.seq_len": 256,
  "model.num_layers": 2,
  "model.model_dim": 256,
  "model.num_heads": 2,
  "model.mlp_dim": 1024,
  "model.vocab_size": 1024,
  "model.compute_dtype": "bfloat16",
  "model.attention": "dense",
  "model.scan_layers": True,
  "train.global_batch_size": 16,
  "mesh.data": 2,
  "mesh.fsdp": 2,
  "mesh.tensor": 2,
}
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu, the TPU compiler, is not installed",
)


def make_config(**changed) -> config_lib.Config:
  values = SMALL | {k.replace("__", "."): v for k, v in changed.items()}
  path = str(ROOT / "configs" / "base.py")
  overrides = {k: str(v) for k, v in values.items()}
  return config_lib.freeze(cli.load_config(path, overrides))


@pytest.fixture(scope="module")
def compiled(tpu_compiler):
  """(Built, Compiled, Module) of a small step for eight chips of v5e."""
  topology = chips.parse_topology("v5e:2x4", 1)
  built = build.assemble(make_config(), aot.find_devices(topology), "tpu")
  done = aot.compile_step(built)
  return built, done, hlo.parse(done.text)


@needs_libtpu
def test_kinds_of_memory_add_up_to_what_the_compiler_needs(compiled):
  built, done, module = compiled
  found = memory.split(built, done, module, None)
  stats = done.memory
  assert sum(found.kinds.values()) == found.peak
  assert found.peak == stats.argument_size_in_bytes + (
    stats.output_size_in_bytes
    - stats.alias_size_in_bytes
    + stats.temp_size_in_bytes
  )
  assert min(found.kinds.values()) >= 0
  count = sum(flops.count_parameters(built.config.model).values())
  assert found.kinds["moments"] == pytest.approx(
    2 * found.kinds["parameters"], rel=0.01
  )
  # fsdp 2 x tensor 2 splits nearly all of them in four.
  assert count <= found.kinds["parameters"] <= 1.3 * count


@needs_libtpu
def test_flops_of_the_compiled_step_are_those_of_the_ledger(compiled):
  built, _, module = compiled
  c = built.config
  tokens = c.train.global_batch_size * c.data.seq_len
  ledger = flops.train_flops_per_token(c.model, c.data.seq_len) * tokens
  measured = 8 * cost.measure(module, 8, 1.0).flops
  assert measured == pytest.approx(ledger, rel=0.01)
  more = dataclasses.replace(c.model, num_layers=3)  # the control
  other = flops.train_flops_per_token(more, c.data.seq_len) * tokens
  assert measured != pytest.approx(other, rel=0.01)


@needs_libtpu
def test_every_collective_is_along_known_axes(compiled):
  built, _, module = compiled
  from gpt_jax.lab.plan import roofline

  found = cost.measure(module, 8, 1.0)
  assert found.unknown_loops == []
  topology = chips.parse_topology("v5e:2x4", 1)
  rows = roofline.measure_traffic(found.collectives, built.mesh, topology)
  axes = {axis for row in rows for axis in row.axis.split("+")}
  assert axes == {"data", "fsdp", "tensor"}
  kinds = {row.kind for row in rows}
  assert {"all-reduce", "all-gather"} <= kinds
  assert all(row.bytes > 0 and row.ici_seconds > 0 for row in rows)


@needs_libtpu
def test_slices_are_joined_along_data(tpu_compiler):
  two = chips.parse_topology("v5e:2x2", 2)
  devices = aot.find_devices(two)
  mesh = sharding.make_mesh(
    make_config(mesh__data=2, mesh__fsdp=4, mesh__tensor=1).mesh, devices
  )
  sides = [{d.slice_index for d in half.flat} for half in mesh.devices]
  assert sorted(map(tuple, sides)) == [(0,), (1,)]
  with pytest.raises(config_lib.InputError) as refused:
    sharding.make_mesh(
      make_config(mesh__data=1, mesh__fsdp=8, mesh__tensor=1).mesh, devices
    )
  assert "mesh.data is 1 and the devices are in 2 slices" in str(refused.value)


@needs_libtpu
def test_the_compiler_accepts_every_topology_of_the_table(tpu_compiler):
  for chip in chips.CHIPS.values():
    for shape in chip.shapes:
      topology = chips.parse_topology(f"{chip.word}:{shape}", 1)
      devices = aot.find_devices(topology)
      assert len(devices) == topology.num_devices, topology.name
      assert devices[0].device_kind in chip.kinds


REFUSALS = [
  (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
    "for HLO temporaries (372.65G) exceeds available HBM (15.75G).",
    (372.65, 15.75),
  ),
  (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
    "memory space hbm. Used 48.83G of 15.75G hbm. Exceeded hbm capacity by "
    "33.07G.",
    (48.83, 15.75),
  ),
]


@pytest.mark.parametrize("text, gib", REFUSALS)
def test_a_refusal_is_read_in_the_compilers_own_figures(text, gib):
  found = aot.read_refusal(text)
  assert found.needed == int(gib[0] * 2**30)
  assert found.available == int(gib[1] * 2**30)
  assert "Ran out of memory" in found.sentence
  assert aot.read_refusal("INTERNAL: something else") is None  # the control


def test_an_estimate_that_does_not_fit_names_what_would():
  topology = chips.parse_topology("h100:8", 1)
  config = make_config(
    model__num_layers=32,
    model__model_dim=4096,
    model__num_heads=32,
    model__mlp_dim=16384,
    model__attention="auto",
    data__seq_len=256,
    train__global_batch_size=512,
    mesh__data=8,
    mesh__fsdp=1,
    mesh__tensor=1,
  )
  plan = planner.make(config, topology)
  assert plan["basis"] == "estimated" and not plan["memory"]["fits"]
  found = remedy.find(plan, config, topology, planner.make, lambda line: None)
  assert found["bytes"] < plan["memory"]["available"]
  assert "--config.mesh.fsdp=8" in found["flags"]


def test_state_falls_as_one_over_the_chips():
  config = make_config(mesh__data=1, mesh__fsdp=-1, mesh__tensor=1)
  each = {}
  for hosts in (1, 2, 4):
    topology = chips.parse_topology(f"h100:8x{hosts}", 1)
    wide = dataclasses.replace(
      config, train=dataclasses.replace(config.train, global_batch_size=64)
    )
    found = analytic.estimate(wide, topology).memory.kinds
    each[hosts] = found["parameters"] + found["moments"]
  assert each[1] / each[4] == pytest.approx(4, rel=0.1)
  assert each[1] / each[2] == pytest.approx(2, rel=0.1)


def test_the_vocabulary_is_known_from_the_tokenizers_word():
  plain = make_config()
  model = dataclasses.replace(plain.model, vocab_size=None)
  of = lambda word: (
    tokenizers.resolve_vocab(
      dataclasses.replace(
        plain, model=model, data=dataclasses.replace(plain.data, tokenizer=word)
      )
    ).model.vocab_size
  )
  assert of("bpe:4096") == 4096
  assert of("bytes") == 257
  with pytest.raises(config_lib.InputError) as refused:
    of("chars")
  assert "--config.model.vocab_size=N" in str(refused.value)


# Every way that FLOPs are counted: kernels or not, windows, experts, chunks.
SHAPED = {
  "as it is": {},
  "recomputed": {"model.remat": "full"},
  "dense": {"model.attention": "dense"},
  "window": {"model.sliding_window": 64},
  "chunks": {"train.num_loss_chunks": 8},
}


def list_configs() -> list[str]:
  path = ROOT / "tests" / "contracts" / "test_configs.py"
  spec = importlib.util.spec_from_file_location("listed_configs", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return list(module.COUNTS)


def load(name: str, **values) -> config_lib.Config:
  path, colon, variant = name.partition(":")
  file = str(ROOT / "configs" / path) + colon + variant
  values = {k.replace("__", "."): str(v) for k, v in values.items()}
  return config_lib.freeze(cli.load_config(file, values))


@pytest.mark.parametrize("name", list_configs())
def test_no_plan_has_a_share_of_the_peak_above_one(name):
  alone = dict(mesh__data=1, mesh__fsdp=-1, mesh__tensor=1)
  if name.startswith("classify.py"):
    alone["model__num_classes"] = 2  # as data would
  alone["optim__rates"] = "none"  # which are of parameters that are not there
  config = load(name, model__vocab_size=1024, **alone)
  sizes = sharding.mesh_sizes(config.mesh, 8)
  mesh = jax.sharding.AbstractMesh(tuple(sizes), sharding.AXES)
  # Without a state there are fewer bytes to move: a bound that is stricter.
  none = state.TrainState(*[{}] * 5)
  built = build.Assembly(config, mesh, None, None, None, None, none)
  size = config.train.global_batch_size * config.data.seq_len
  for form in SHAPED.values():
    try:
      changed = remedy.change(config, form)
    except config_lib.InputError as error:  # comparisons are computed whole
      assert form and "num_loss_chunks" in str(error), (form, error)
      continue
    place = dataclasses.replace(built, config=changed)
    # By arithmetic for TPUs too, as a search ranks settings.
    for where in ("h100:8", "a100:8", "v5e:2x4", "v4:2x2x1", "v5p:2x2x2"):
      topology = chips.parse_topology(where, 1)
      terms = analytic.estimate_terms(place, topology)
      done = analytic.hardware_flops(changed, topology) * size
      r = planner._roofline(terms, changed, topology, done)
      # A token's FLOPs are whole numbers.
      exact = 1 + 1 / flops.masked_flops_of(changed)
      assert 0 < r["mfu"] <= r["hfu"] * exact + 1e-9, (form, where)
      assert r["expected"]["mfu"] < r["hfu"] <= 1 + 1e-9, (form, where)


def test_a_share_in_palms_convention_would_exceed_the_peak():
  plan = planner.make(load("gpt2.py:124m"), chips.parse_topology("h100:8", 1))
  ratio = plan["flops_per_token"] / plan["masked_flops_per_token"]
  assert plan["roofline"]["mfu"] * ratio > 1.05


def test_the_expected_figure_is_the_bound_by_the_measured_ratio(
  call_verb, tmp_path
):
  words = [*PLAN, "--price=2.5", f"--out={tmp_path}"]
  result = call_verb("lab.plan", *words)
  assert (result.returncode, result.stderr) == (0, "")
  plan = json.loads((tmp_path / "plan.json").read_text())
  r = plan["roofline"]
  # The ratios are those that docs/performance.md lists.
  text = (ROOT / "docs" / "performance.md").read_text()
  rows = re.findall(r"^\| .* % \| [\d.]+ % \| ([\d.]+) \|", text, re.M)
  assert sorted(map(float, rows)) == list(roofline.RATIOS["tpu"])
  took = re.search(r"took ([\d.]+), ([\d.]+) and ([\d.]+) times", text)
  assert sorted(map(float, took.groups())) == list(roofline.RATIOS["gpu"])
  assert r["expected"]["ratio"] == statistics.median(roofline.RATIOS["gpu"])
  assert r["expected"]["hours"] == pytest.approx(1.47 * r["hours"], rel=0.01)
  for run in (r, r["expected"]):
    assert f"= {2.5 * run['chip_hours']:,.2f} at 2.5 a chip" in result.stdout
  assert plan["checkpoint"]["bytes"] > 2 * 4 * plan["parameters"]
  assert "checkpoint" in result.stdout and "kept" in result.stdout
  held = console.format_bytes(plan["cache_bytes_per_token"])
  assert f"decoding    caches {held} a token" in result.stdout


PLAN = ["--config=configs/tiny.py", "--topology=h100:8"]


def test_plan_prints_and_writes_a_plan(call_verb, tmp_path):
  result = call_verb("lab.plan", *PLAN, f"--out={tmp_path}")
  assert (result.returncode, result.stderr) == (0, "")
  assert "estimated" in result.stdout and "MFU" in result.stdout
  plan = json.loads((tmp_path / "plan.json").read_text())
  assert plan["memory"]["fits"] and plan["basis"] == "estimated"
  again = call_verb("lab.plan", *PLAN, "--json")
  assert json.loads(again.stdout) == plan


def test_a_plan_for_a_cpu_says_that_it_is_estimated(call_verb):
  flags = ["--config=configs/tiny.py", "--topology=cpu:8"]
  result = call_verb("lab.plan", *flags)
  assert result.returncode == 0 and "estimated" in result.stdout
  assert "there is" not in result.stdout


def test_search_names_flags_that_give_the_plan_it_found(call_verb):
  flags = ["--config=configs/llama.py:8b", "--topology=h100:8x4"]
  result = call_verb("lab.plan", *flags, "--search", "--json")
  assert (result.returncode, result.stderr) == (0, "")
  best = json.loads(result.stdout)
  words = best["search"]["flags"].split()
  again = call_verb("lab.plan", *words, "--topology=h100:8x4", "--json")
  found = json.loads(again.stdout)
  assert found["roofline"] == best["roofline"]
  assert found["memory"] == best["memory"]
  plain = json.loads(call_verb("lab.plan", *flags, "--json").stdout)
  assert best["roofline"]["step"] <= plain["roofline"]["step"]


@pytest.mark.parametrize(
  "flags, said",
  [
    (["--topology=v5q:2x2"], "unknown topology 'v5q:2x2'; known are: v4|"),
    (["--topology=v5p:3x3x3"], "v5p has slices of 2x2x1, "),
    (["--topology=cpu:8", "--slices=2"], "--slices=2 is for TPUs"),
    (["--topology=v5e:2x4", "--slices=0"], "--slices is 0"),
    (["--topology=h100:8", "--minutes=0"], "--minutes is 0"),
    (["--topology=h100:8", "--price=0"], "--price is 0"),
    (["--topology=h100:8", "--price=nan"], "--price is nan"),
    (["--topology=h100:8", "--config.mesh.fsdp=3"], "must multiply to 8"),
    (
      ["--topology=h100:8", "--config.data.tokenizer=chars"],
      "give --config.model.vocab_size=N",
    ),
    (["--topolgy=h100:8"], "unknown argument --topolgy"),
    ([], "--topology"),
  ],
)
def test_a_plan_that_cannot_be_made_is_refused_in_a_sentence(
  call_verb, tmp_path, flags, said
):
  flags = ["--config=configs/tiny.py", f"--out={tmp_path / 'new'}", *flags]
  result = call_verb("lab.plan", *flags)
  lines = result.stderr.splitlines()
  assert result.returncode == 2 and len(lines) == 1, result.stderr
  assert lines[0].startswith("gpt_jax: ") and said in lines[0]
  assert not (tmp_path / "new").exists()


@needs_libtpu
@pytest.mark.parametrize(
  "flags, said",
  [
    (["--config.mesh.fsdp=3"], "must multiply to 8"),
    (["--slices=2", "--config.mesh.data=1"], "does not match the 16 devices"),
    (
      ["--slices=2", "--config.mesh.data=1", "--config.mesh.fsdp=16"],
      "mesh.data is 1 and the devices are in 2 slices",
    ),
    (["--config.train.global_batch_size=12"], "data x fsdp x expert = 8"),
  ],
)
def test_a_mesh_that_is_not_the_slices_is_refused(
  tpu_compiler, call_verb, flags, said
):
  flags = ["--config=configs/tiny.py", "--topology=v5e:2x4", *flags]
  result = call_verb("lab.plan", *flags)
  lines = result.stderr.splitlines()
  assert result.returncode == 2 and len(lines) == 1, result.stderr
  assert said in lines[0]


PODS = [
  ("gpt2.py:124m", "v5e:2x4", 1),
  ("llama.py:8b", "v5e:16x16", 1),
  ("llama.py:8b", "v6e:16x16", 1),
  ("llama.py:70b", "v5p:8x8x8", 1),
  ("gpt3.py", "v5p:8x8x16", 2),
]


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("name, topology, slices", PODS)
def test_a_pods_step_compiles_in_three_minutes(
  run_verb, tmp_path, name, topology, slices
):
  result = run_verb(
    "gpt_jax.lab.plan",
    f"--config=configs/{name}",
    f"--topology={topology}",
    f"--slices={slices}",
    f"--out={tmp_path}",
    timeout=900,
    check=0,
  )
  assert result.stderr == ""
  plan = json.loads((tmp_path / "plan.json").read_text())
  assert plan["basis"] == "compiled" and plan["memory"]["fits"]
  assert plan["compile_seconds"] < 180
  assert plan["unknown_loops"] == []
  assert 0.1 < plan["roofline"]["mfu"] <= plan["roofline"]["hfu"] <= 1
  if slices > 1:
    assert plan["roofline"]["dcn"] > 0


@pytest.mark.slow
@needs_libtpu
def test_what_does_not_fit_is_refused_with_the_compilers_figure(run_verb):
  result = run_verb(
    "gpt_jax.lab.plan",
    "--config=configs/llama.py:8b",
    "--topology=v5e:2x4",
    "--config.data.seq_len=1024",
    "--config.train.global_batch_size=64",
    timeout=900,
    check=4,
  )
  assert result.stderr == ""
  assert "does not fit: " in result.stdout
  assert "the compiler: " in result.stdout and "hbm" in result.stdout.lower()
  assert "the nearest that fits: " in result.stdout
