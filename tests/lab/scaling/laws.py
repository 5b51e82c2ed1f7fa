"""Runs of known coefficients, as arrays, tables and workdirs."""

import csv
import json
import pathlib
import time

import numpy as np
from harness import ROOT

from gpt_jax import cli, config, flops, metric_names
from gpt_jax.lab.scaling import frontier, parametric
from gpt_jax.lab.scaling import points as points_lib
from gpt_jax.runs import workdir

# (log A, log B, log E, alpha, beta), near the published.
TRUTH = np.array([*np.log([482.0, 2085.4, 1.8172]), 0.3478, 0.3658])
COLUMNS = ("--loss=loss", "--params=N", "--flops=C")
CHINCHILLA = ("--loss=loss", "--params=Model Size", "--flops=Training FLOP")


def make_runs(count: int, noise: float, seed: int = 0):
  """Returns (N, D, loss) [count] with lognormal noise of that deviation."""
  rng = np.random.default_rng(seed)
  params = np.exp(rng.uniform(*np.log([5e7, 1.5e10]), count))
  tokens = np.exp(rng.uniform(*np.log([6e18, 3e21]), count)) / (6 * params)
  loss = parametric.log_predict(TRUTH, np.log(params), np.log(tokens))
  return params, tokens, np.exp(loss + noise * rng.standard_normal(count))


def make_isoflop(noise: float, seed: int = 0):
  """Returns (N, C, loss) of 5 budgets of 7 sizes about the optimum."""
  rng = np.random.default_rng(seed)
  rows = []
  for flops_ in (1e18, 1e19, 1e20, 1e21, 1e22):
    best, _, _ = frontier.optimum(TRUTH, flops_)
    for ratio in np.geomspace(1 / 3, 3, 7):
      n = best * ratio
      loss = parametric.log_predict(TRUTH, np.log(n), np.log(flops_ / 6 / n))
      rows.append((n, flops_, np.exp(loss[0] + noise * rng.standard_normal())))
  return np.array(rows).T


def write_csv(path, names, columns) -> pathlib.Path:
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
  return path


def columns_of(path) -> dict:
  keys = ("loss", "params", "flops")
  names = (word.split("=")[1] for word in CHINCHILLA)
  return dict.fromkeys(("tokens", "budgets")) | dict(
    zip(keys, names, strict=True)
  )


def make_points(params, tokens, loss) -> points_lib.Points:
  count = len(loss)
  return points_lib.Points(
    params=params,
    tokens=tokens,
    flops=6 * params * tokens,
    loss=loss,
    names=tuple(f"run {i}" for i in range(count)),
    source="here",
    convention="6N",
    counts={"6N": (params, 6 * params)},
    budgets=None,
    num_found=count,
    left_out=(),
  )


def write_workdir(folder, width: int, steps: int, is_finished=True, began=None):
  """Writes what a run leaves, its loss by TRUTH at 10,000 times its size.

  Args:
    began: seconds since 1970 that its rows carry; now if None.
  """
  values = cli.load_config(str(ROOT / "configs" / "tiny.py"), {})
  values.model.model_dim, values.model.mlp_dim = width, 4 * width
  values.model.vocab_size, values.train.num_steps = 2048, steps
  frozen = config.freeze(values)
  folder.mkdir(parents=True)
  workdir.write_config(str(folder), frozen, "0" * 64, "1" * 16)
  tokens = steps * 16 * 128
  params, _ = flops.count_by_convention(frozen.model, 128, "6N-no-embed")
  logs = np.log([1e4 * params, 1e4 * tokens])
  loss = float(np.exp(parametric.log_predict(TRUTH, *logs)[0]))
  early = {"step": steps // 2, "eval/valid/loss": 9.0, metric_names.TOKENS: 1}
  rows = [{"step": 1, points_lib.TIME: time.time() if began is None else began}]
  rows.append(early | {metric_names.LOSS: 9.0})
  if is_finished:
    rows.append(
      {"step": steps, metric_names.LOSS: 8.0, metric_names.TOKENS: tokens}
    )
    if steps % 300 == 0:
      rows.append({"step": steps, "eval/valid/loss": 7.0})
    end = {"eval/valid/loss": loss, "eval/valid/num_tokens": 99}
    rows.append({"step": steps, **end})
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metrics.jsonl").write_text(text)
  return params, tokens, loss


def grid_runs(noise: float = 0.003):
  """Returns (N, D, loss) of six sizes at five numbers of tokens."""
  rng = np.random.default_rng(1)
  sizes, lengths = np.geomspace(1e8, 1e10, 6), np.geomspace(2e9, 2e11, 5)
  params, tokens = (v.ravel() for v in np.meshgrid(sizes, lengths))
  loss = parametric.log_predict(TRUTH, np.log(params), np.log(tokens))
  return params, tokens, np.exp(loss + noise * rng.standard_normal(30))


def scaling_main(*words):
  from gpt_jax.lab import scaling

  return lambda: scaling.main(list(words))


def assert_refused(result, *said) -> None:
  """Checks that a command ended in one sentence that holds all of `said`."""
  lines = result.stderr.splitlines()
  assert result.returncode == 2 and len(lines) == 1, result.stderr
  assert lines[0].startswith("gpt_jax: ") and result.stdout == ""
  for words in said:
    assert words in lines[0], lines[0]
