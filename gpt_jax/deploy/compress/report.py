"""Size, speed, loss and accuracy of each model, as a table and a figure."""

import dataclasses
import json
import os
from typing import Any

import jax

from gpt_jax import files
from gpt_jax.config import WEIGHTS
from gpt_jax.deploy.compress import measure as measuring
from gpt_jax.deploy.compress.methods import Compressed
from gpt_jax.runs.plot import Layer, draw_layers

COLUMNS = ("method", "MiB", "of full", "tokens/s", "loss", "change", "accuracy")


def measure(name: str, made: Compressed, run: tuple, scored: Any) -> dict:
  """Returns {"method", "bytes", "tokens_per_second", "loss", "accuracy"}.

  Args:
    run: workdir.open_run's.
    scored: a prepared set.
  """
  from gpt_jax.models import build_model

  *_, mesh = run
  config = made.config
  model = build_model(
    config.model,
    config.mesh.rules,
    run[1].platform,
    made.weights if made.weights in WEIGHTS else "full",
  )
  with jax.set_mesh(mesh):
    whole = jax.jit(model.restore_matrices)(made.params)
  found = measuring.predict(
    dataclasses.replace(model, weights="full"), whole, scored, config, mesh
  )
  return {
    "method": name,
    "bytes": measuring.count_bytes(made.params),
    "tokens_per_second": measuring.time_decoding(model, made.params, mesh),
    **found,
  }


def describe(row: dict, full: dict) -> str:
  """Returns a row as a line of text; `full` is the row of the full model."""
  return "  ".join(
    f"{a} {b}" for a, b in zip(COLUMNS, _cells(row, full), strict=True)
  )


def write(folder: str, rows: list[dict]) -> None:
  """Writes table.json, table.md and table.svg."""
  lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
  lines += ["| " + " | ".join(_cells(row, rows[0])) + " |" for row in rows]
  put = lambda name, text: files.write_text(os.path.join(folder, name), text)
  put("table.json", json.dumps(rows, indent=2) + "\n")
  put("table.md", "\n".join(lines) + "\n")
  put("table.svg", draw(rows))


def draw(rows: list[dict]) -> str:
  """Returns an SVG of loss against size, a dot for each model."""
  layers = [
    Layer(
      "dots",
      [(row["bytes"] / 2**20, row["loss"])],
      f"hsl({round(360 * i / len(rows))}, 65%, {40 + 15 * (i % 2)}%)",
      row["method"],
    )
    for i, row in enumerate(rows)
  ]
  return draw_layers(
    "loss of smaller models", "size, MiB", "loss, nats a token", layers, log=""
  )


def _cells(row: dict, full: dict) -> list[str]:
  return [
    row["method"],
    f"{row['bytes'] / 2**20:,.2f}",
    f"{row['bytes'] / full['bytes']:.3f}",
    f"{row['tokens_per_second']:,.0f}",
    f"{row['loss']:.4f}",
    f"{100 * (row['loss'] / full['loss'] - 1):+.2f} %",
    f"{100 * row['accuracy']:.2f} %",
  ]
