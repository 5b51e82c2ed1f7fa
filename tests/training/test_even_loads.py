"""The small recipes of configs/moe.py crowd no expert, at any step."""

import pytest

from gpt_jax import metric_names
from gpt_jax.runs import metrics

# Times an even share.
MOST = 1.5


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["mini", "mini-biases"])
def test_the_busiest_expert_is_within_half_of_an_even_share(
  variant, run_verb, tmp_path
):
  run_verb(
    "gpt_jax.train",
    f"--config=configs/moe.py:{variant}",
    f"--config.data.dir={tmp_path / 'prepared'}",
    "--config.train.log_every_steps=1",
    "--config.sample.every_steps=0",
    f"--workdir={tmp_path / 'run'}",
    timeout=7200,
    check=0,
    XLA_FLAGS="",
  )
  rows = metrics.read_rows(str(tmp_path / "run" / "metrics.jsonl"))
  loads = [
    {k: v for k, v in row.items() if k.startswith(metric_names.EXPERT_LOAD_MAX)}
    for row in rows
  ]
  loads = [load for load in loads if load]
  assert len(loads) == 500 and all(len(load) == 2 for load in loads)
  assert max(max(load.values()) for load in loads) <= MOST
