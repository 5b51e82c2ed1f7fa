"""The coordinate check: flat with muP, and red with any of its rows broken."""

import dataclasses
import json
import math
import pathlib

import pytest

from gpt_jax import cli, config, parametrization
from gpt_jax.config import InputError
from gpt_jax.lab.transfer import coordinates, family
from gpt_jax.models import declare, layers, stack

ROOT = pathlib.Path(__file__).parents[2]
# An even step between three widths would give the middle one no weight.
WIDTHS, STEPS, SEEDS = [64, 256], 10, 4


@pytest.fixture(scope="module")
def make(tmp_path_factory):
  """Makes the config of the check on a text of Python, its data kept."""
  folder = tmp_path_factory.mktemp("prepared")

  def config_of(**values) -> config.Config:
    flags = {
      "data.source": f"text:{ROOT}/gpt_jax/*.py",
      "data.split": "tail",
      "data.dir": str(folder),
    }
    flags |= {k.replace("__", "."): str(v) for k, v in values.items()}
    path = str(ROOT / "configs" / "mup.py")
    return config.freeze(cli.load_config(path, flags))

  return config_of


def most_of(c, axis="width", sizes=WIDTHS, steps=STEPS, seeds=1):
  traces = coordinates.check(c, axis, sizes, steps, seeds)
  return coordinates.judged(traces, axis), coordinates.is_flat(traces, axis)


@pytest.mark.wide
def test_activations_are_flat_in_width_with_mup_and_grow_without(make):
  most, is_flat = most_of(make(), seeds=SEEDS)
  assert is_flat, most
  most, is_flat = most_of(
    make(model__parametrization="standard"), sizes=[64, 256], steps=2
  )
  assert not is_flat
  assert min(most[tap] for tap in ("attn", "mlp", "residual")) > 0.8
  assert most["logits"] > 0.3


# Logits begin at zero, so that nothing of them is left out of account.
LEVEL = dict(model__tied_embeddings=False, model__unembed_init_std=0.0)


@pytest.mark.slow
def test_from_a_zero_output_matrix_all_are_flat_from_the_first_step(make):
  traces = coordinates.check(make(**LEVEL), "width", WIDTHS, STEPS, SEEDS)
  rows = coordinates.exponents(traces)
  assert math.isnan(rows["logits"][0])  # all are zero
  assert coordinates.judged(traces, "width")["logits"] in rows["logits"][1:]
  for tap, row in rows.items():
    row = row[1:] if tap == "logits" else row
    assert max(map(abs, row)) < coordinates.TOLERANCE, (tap, row)
  # The control: from another start logits fall with width at first.
  untied = make(model__tied_embeddings=False)
  traces = coordinates.check(untied, "width", [64, 256], 1)
  assert coordinates.exponents(traces)["logits"][1] < -0.2
  most, is_flat = most_of(
    make(**LEVEL, model__parametrization="standard"), sizes=[64, 256], steps=2
  )
  assert not is_flat and most["logits"] > 0.3


def specify_without_rates(*args):
  return dataclasses.replace(SPECIFY(*args), rate=1.0)


SPECIFY = parametrization.specify
BROKEN = {
  "rates": (declare, "specify", specify_without_rates, "residual"),
  "readout": (layers, "readout_multiplier", lambda c: 1.0, "logits"),
  "start": (
    parametrization,
    "init_std",
    lambda role, c: c.init_std,
    "residual",
  ),
}


@pytest.mark.wide
@pytest.mark.parametrize("row", BROKEN)
def test_a_row_that_is_missing_is_seen(row, make, monkeypatch):
  module, name, without, tap = BROKEN[row]
  monkeypatch.setattr(module, name, without)
  stack.abstract_params.cache_clear()  # what was declared by the whole table
  try:
    most, is_flat = most_of(make(), sizes=[64, 128], steps=3)
  finally:
    stack.abstract_params.cache_clear()
  assert not is_flat and most[tap] > 0.2, most


@pytest.mark.slow
def test_activations_are_flat_from_64_to_1024_over_10_steps(make):
  sizes = [64, 128, 256, 512, 1024]
  for start in ({}, LEVEL):
    most, is_flat = most_of(make(**start), sizes=sizes, seeds=SEEDS)
    assert is_flat, most
  standard = make(model__parametrization="standard")
  most, is_flat = most_of(standard, sizes=sizes, seeds=SEEDS)
  assert not is_flat and most["residual"] > 1.0


@pytest.mark.slow
def test_activations_are_flat_from_2_to_32_blocks_with_completep(make):
  sizes = [2, 4, 8, 16, 32]
  form = dict(model__parametrization="completep", model__scan_layers=True)
  most, is_flat = most_of(make(**form), axis="depth", sizes=sizes, seeds=SEEDS)
  assert is_flat, most
  form["model__parametrization"] = "mup"
  most, is_flat = most_of(make(**form), axis="depth", sizes=sizes, seeds=SEEDS)
  assert not is_flat, most


def test_members_of_a_family_are_in_proportion(make):
  c = make()
  wide = family.at_width(c, 256).model
  assert (wide.model_dim, wide.mlp_dim, wide.num_heads) == (256, 1024, 8)
  assert config.head_dim(wide) == config.head_dim(c.model)
  wide = family.at_width(c, 256, "head_dim").model
  assert (wide.num_heads, config.head_dim(wide)) == (2, 128)
  assert wide.base_head_dim == 32
  with pytest.raises(InputError, match="whole numbers of heads"):
    family.at_width(c, 80)


def test_an_exponent_is_the_slope_of_logarithms():
  sizes = [64, 128, 512]
  for k in (-0.5, 0.0, 1.25):
    values = [3.0 * s**k for s in sizes]
    assert coordinates.exponent(sizes, values) == pytest.approx(k)
  assert math.isnan(coordinates.exponent(sizes, [1.0, math.inf, 1.0]))
  assert math.isnan(coordinates.exponent(sizes, [1.0, 0.0, 1.0]))


def traces_of(power: float):
  levels = lambda s: {t: [1.0, s**power, s**power] for t in coordinates.TAPS}
  return [
    coordinates.Trace(s, levels(s), levels(s), [2.0, 1.0]) for s in (64, 256)
  ]


def test_what_grows_or_is_not_finite_is_not_flat():
  assert coordinates.is_flat(traces_of(0.09), "width")
  assert not coordinates.is_flat(traces_of(0.11), "width")
  assert not coordinates.is_flat(traces_of(-0.11), "width")
  assert not coordinates.is_flat(traces_of(math.nan), "width")


def test_what_vanishes_is_not_flat():
  dead = traces_of(0.0)
  for trace in dead:
    trace.levels["logits"][:] = [0.0, 0.0, 0.0]
  assert not coordinates.is_flat(dead, "width")


@pytest.mark.parametrize("start,is_flat", [(1.0, True), (0.0, False)])
def test_logits_that_start_at_zero_count_from_the_first_step(start, is_flat):
  traces = traces_of(0.0)
  for trace in traces:
    trace.levels["logits"][:] = [start, trace.size**0.5, 1.0, 1.0, 1.0]
  assert coordinates.is_flat(traces, "width") == is_flat
  for trace in traces:
    trace.levels["logits"][1] = 1.0
  assert coordinates.is_flat(traces, "width")


@pytest.mark.wide
def test_the_command_writes_what_it_found(make, call_verb, tmp_path):
  c = make()
  flags = [f"--config.data.{k}={getattr(c.data, k)}" for k in ("source", "dir")]
  flags += ["--config.data.split=tail", f"--config={ROOT}/configs/mup.py"]
  sizes = ["--widths=32,64", "--steps=1", "--seeds=1"]
  done = call_verb(
    "lab.transfer.coordinates", *flags, *sizes, f"--out={tmp_path}"
  )
  assert done.returncode in (0, 1), done.stderr
  found = json.loads((tmp_path / "coordinates.json").read_text())
  assert [t["size"] for t in found["traces"]] == [32, 64]
  assert found["is_flat"] == (done.returncode == 0)
  assert (tmp_path / "coordinates.svg").read_text().startswith("<svg")
  assert "exponents of mean |activation|" in done.stdout


@pytest.mark.parametrize(
  "flags,sentence",
  [
    (["--widths=64"], "two or more whole numbers"),
    (["--widths=64,big"], "two or more whole numbers"),
    (["--widths=64,128", "--depths=2,4"], "both given"),
    (["--widths=64,80"], "whole numbers of heads"),
    (["--steps=0"], "must be 1 or more"),
    (["--growing=depth"], "must be one of heads, head_dim"),
  ],
)
def test_what_cannot_be_checked_is_refused(flags, sentence, call_verb):
  path = f"--config={ROOT}/configs/mup.py"
  done = call_verb("lab.transfer.coordinates", path, *flags)
  assert done.returncode == 2 and sentence in done.stderr
