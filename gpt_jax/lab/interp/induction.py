"""Finds a run's induction head and ablates it: gpt_jax.lab.interp.induction.

The model reads random tokens twice. The head with the highest induction score
(heads.induction_scores) is ablated; then all heads with at least SHARE of its
score; and, as a control, the head of its layer with the lowest score.
"""

import sys

from gpt_jax import cli, files
from gpt_jax.config import InputError
from gpt_jax.machine import processes, runtime

# Number of rows of random tokens, and of tokens in a row before they repeat.
ROWS, LENGTH = 32, 24
# Heads with at least this share of the best head's score are ablated with it.
SHARE = 0.5


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.interp.induction",
    "Score the heads of a run by induction, on random tokens that are read "
    "twice, and draw the loss at each place with all heads, without the best "
    "one, and without another.",
    needs_config=False,
  )
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="folder of the run"
  )
  parser.add_argument(
    "--out", required=True, metavar="FILE", help="figure to write, as SVG"
  )
  args = cli.parse_flags(parser, argv)
  args.out = files.output_path("--out", args.out)
  runtime.start(args.devices)
  if processes.count() > 1:
    raise InputError("heads are scored by one process; start one")

  from gpt_jax.api import Run
  from gpt_jax.lab.interp import passes

  run = Run(args.workdir)
  passes.open_model(run)
  if run.model.config.max_len < 2 * LENGTH:
    raise InputError(
      f"the run reads {run.model.config.max_len} tokens; it must read "
      f"{2 * LENGTH}: {LENGTH} random ones, twice"
    )
  found, figure = measure(run)
  files.write_text(args.out, figure)
  for name, value in found.items():
    print(f"{name}: {value}")
  return 0


def measure(run) -> tuple[dict, str]:
  """Returns ({name: value}, SVG of the loss at each position).

  The values are the scores of the best and the control head and, with and
  without ablation, the mean losses in nats over the first and the second
  occurrence of the tokens.
  """
  import numpy as np

  from gpt_jax.lab.interp import heads
  from gpt_jax.runs.plot import COLORS, Layer, draw_layers

  rows = heads.repeated(run, LENGTH, ROWS, seed=1, ids=_letters(run))
  score_LN = heads.induction_scores(run, rows)
  layer, best = map(int, np.unravel_index(np.argmax(score_LN), score_LN.shape))
  score_N = score_LN[layer]
  control = int(score_N.argmin())
  same = np.argwhere(score_LN >= SHARE * score_N[best]).tolist()
  name = lambda head: f"layer {layer}, head {head}"
  cases = {"all heads": [], f"without {name(best)}": [(layer, best)]}
  if len(same) > 1:
    cases[f"without {len(same)} such heads"] = [(i, head) for i, head in same]
  cases[f"without {name(control)}"] = [(layer, control)]
  found = {
    f"score of {name(best)}": float(score_N[best]),
    f"score of {name(control)}": float(score_N[control]),
  }
  layers = []
  for i, (case, without) in enumerate(cases.items()):
    loss_T = heads.losses_by_place(run, rows, without).mean(0)
    found[f"loss, first reading, {case}"] = float(loss_T[: LENGTH - 1].mean())
    found[f"loss, second reading, {case}"] = float(loss_T[LENGTH:].mean())
    points = [(t + 2, float(loss)) for t, loss in enumerate(loss_T)]
    layers.append(Layer("line", points, COLORS[i + 1], case))
  title = f"{LENGTH} random tokens, read twice"
  axes = "place in the text", "loss, nats"
  return found, draw_layers(title, *axes, layers, log="")


def _letters(run) -> list[int]:
  """Returns ids of single letters, which do not hint at what comes next.

  Returns all ids if the tokenizer has no single letters.
  """
  import string

  ids = []
  for letter in string.ascii_letters:
    try:
      own = run.tokenizer.encode(letter).tolist()
    except InputError:
      continue
    ids += own if len(own) == 1 else []
  return ids or list(range(run.tokenizer.vocab_size))


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
