"""A smaller model starts from some layers of a larger one."""

import numpy as np
import pytest
from refusals import assert_refused, flag

from gpt_jax import tree
from gpt_jax.config import InputError
from gpt_jax.config.options import LayerChoice
from gpt_jax.runs import workdir as workdir_lib

pytestmark = pytest.mark.battery

DEEP = {
  "model.num_layers": 5,
  "train.num_steps": 2,
  "optim.warmup_steps": 0,
}


@pytest.fixture(scope="module")
def deep(base, call_verb, tmp_path_factory):
  """The workdir of a model of five layers; to be read only."""
  folder = tmp_path_factory.mktemp("deep") / "run"
  words = [flag(k, v) for k, v in DEEP.items()]
  result = call_verb("train", *base[1], *words, f"--workdir={folder}")
  assert result.returncode == 0, result.stderr
  return folder


def layers_of(workdir) -> dict[str, np.ndarray]:
  _, _, params, *_ = workdir_lib.open_run(str(workdir), {})
  return {k: np.asarray(v) for k, v in tree.flatten_with_names(params).items()}


# No step moves anything: what is there at the end is what was taken.
STILL = {"optim.learning_rate": 0, "optim.warmup_steps": 0}


@pytest.mark.parametrize(
  "choice, rows, devices, changes",
  [
    ("every:2", [0, 2, 4], None, {}),
    ("1+2+4", [1, 2, 4], 8, {"mesh.fsdp": 4, "mesh.tensor": 2, "mesh.data": 1}),
    ("every:3", [0, 3], None, {"model.scan_layers": True}),
    ("all", [0, 1, 2, 3, 4], None, {}),
  ],
)
def test_the_layers_are_those_of_the_other_run(
  choice, rows, devices, changes, deep, train, tmp_path
):
  values = {
    **STILL,
    "train.init_from": deep,
    "train.init_layers": choice,
    "train.num_steps": 1,
    "model.num_layers": len(rows),
    **changes,
  }
  words = [flag(k, v) for k, v in values.items()]
  words += [f"--devices={devices}"] if devices else []
  own = tmp_path / "own"
  result = train(*words, workdir=own, is_kept=True)
  assert result.returncode == 0, result.stderr
  there = layers_of(deep)
  for name, x in layers_of(own).items():
    wanted = there[name][rows] if name.startswith("blocks/") else there[name]
    np.testing.assert_array_equal(x, wanted, name)


@pytest.mark.parametrize(
  "changes, said",
  [
    (
      {"train.init_layers": "every:2", "model.num_layers": 2},
      "3 of the 5 layers of",
    ),
    ({"train.init_layers": "2+5"}, "has 5 layers, from 0 to 4"),
    (
      {
        "train.init_layers": "0+4",
        "model.num_experts": 4,
        "model.layer_pattern": "dense+moe",
      },
      "layer 0 starts from layer 0 of",
    ),
    ({"train.init_layers": "all"}, "is of another model: params/blocks/"),
    ({"train.init_layers": "every:2", "train.init_from": None}, "leave it all"),
    (
      {"train.init_layers": "every:3", "adapter.rank": "attn=2"},
      "trained without adapters",
    ),
  ],
  ids=str,
)
def test_layers_that_do_not_fit_are_refused(changes, said, deep, train):
  values = {"train.init_from": deep} | changes
  given = [flag(k, v) for k, v in values.items() if v is not None]
  assert_refused(train(*given), said)


@pytest.mark.parametrize(
  "text", ["", "every:0", "every:", "every:x", "2+1", "1+1", "1+", "-1", "some"]
)
def test_a_choice_that_is_none_is_refused(text):
  with pytest.raises(InputError, match="it must be all, every:N"):
    LayerChoice(text)
