"""Scaling laws of finished runs: python -m gpt_jax.lab.scaling --help.

Everything is computed before anything is written. Fits need only numpy and
scipy, and jax is never imported. From a notebook:

  runs = points.read_workdirs("runs/grid-*", None, "6N")
  study.analyse(runs).found
"""

import json
import math
import os

from gpt_jax import cli, files
from gpt_jax.config import InputError, require_choice

# Flags that name columns of a CSV file only. --loss may also name a metric of
# workdirs.
_COLUMNS = ("params", "tokens", "flops", "budgets")


def main(argv: list[str]) -> int:
  parser = _build_parser()
  args = cli.parse_flags(parser, argv)
  if args.score is not None:
    return _score(args)
  _check(args)

  from gpt_jax.lab.scaling import forecast, study

  points = _read_points(args)
  needs = (args.at, args.hold_above, args.register)
  found = study.analyse(
    points,
    form=args.form,
    num_resamples=args.bootstraps,
    seed=args.seed,
    at=_budgets_of(args.at),
    tolerance=args.budget_tolerance,
    hold_above=args.hold_above,
    is_fit_required=any(needs),
  )
  written = study.write(found, args.out) if args.out else []
  record = None
  if args.register is not None:
    assert found.fit is not None  # is_fit_required
    record = forecast.register(
      args.register,
      found.fit,
      points,
      args.at_params,
      args.at_tokens,
      args.seed,
    )
  print("\n".join(found.lines()))
  if record is not None:
    _print_prediction(args.register, record)
  if args.out:
    print(f"\nwritten to {args.out}: {', '.join(written)}")
  return 0


def _print_prediction(path: str, record: dict) -> None:
  from gpt_jax.lab.scaling import forecast

  print(
    f"\nregistered in {path}: N {record['params']:.4g}, D "
    f"{record['tokens']:.4g}, {record['flops']:.3g} FLOPs, "
    f"{record['times_largest_fitted_flops']:.2f} times the largest fitted\n"
    f"  loss {record['predicted']:.4f}, {record['level']} % prediction "
    f"interval {record['low']:.4f} to {record['high']:.4f}"
  )
  said = forecast.describe_widening(
    record["widening"], record["times_largest_fitted_flops"]
  )
  print("\n".join(f"  {words}" for words in said))


def _build_parser():
  parser = cli.build_parser(
    "lab.scaling",
    "Fits scaling laws to finished runs: loss = E + A/N^alpha + B/D^beta by\n"
    "the published objective (Hoffmann et al. 2022; Besiroglu et al. 2024),\n"
    "IsoFLOP parabolas and the compute-optimal frontier, with intervals.",
    needs_config=False,
  )
  _add_sources(parser.add_argument)
  _add_fits(parser.add_argument)
  _add_predictions(parser.add_argument)
  return parser


def _add_sources(add) -> None:
  """Adds the flags that say where the runs are."""
  add("--csv", metavar="FILE", help="a CSV file with a row for each run")
  add("--workdirs", metavar="GLOB", help="folders of runs: 'runs/grid-*'")
  add(
    "--loss",
    metavar="COLUMN",
    help="the CSV's column of losses; for workdirs that were evaluated on "
    "several sets the metric, eval/<set>/loss",
  )
  add("--params", metavar="COLUMN", help="the CSV's column of parameters N")
  add("--tokens", metavar="COLUMN", help="the CSV's column of tokens D")
  add(
    "--flops",
    metavar="COLUMN",
    help="the CSV's column of FLOPs C; two of N, D and C are enough: C = 6 N D",
  )
  add(
    "--trust-units",
    action="store_true",
    help="fit even if the columns do not look like parameters, tokens, FLOPs "
    "and nats",
  )
  add(
    "--convention",
    metavar="NAME",
    help="what N and C of workdirs count: 6N (the default), 6N-no-embed, "
    "6N-no-embed+head, 6N-no-embed+attention, 6N+attention, "
    "6N+attention-causal",
  )
  add(
    "--drop-highest",
    type=int,
    default=0,
    metavar="K",
    help="leave out the runs of the K highest losses (default %(default)s)",
  )


def _add_fits(add) -> None:
  """Adds the flags that say what is fitted, and how."""
  add(
    "--form",
    default="both",
    metavar="NAME",
    help="parametric, isoflop, or both (default); both leaves out IsoFLOP "
    "where runs share no budgets",
  )
  add(
    "--budgets",
    metavar="COLUMN",
    help="the CSV's column of numbers that name each run's compute budget",
  )
  add(
    "--budget-tolerance",
    type=float,
    metavar="FRAC",
    help="without --budgets: runs whose FLOPs are within this fraction of the "
    "least share a budget (default 0.1)",
  )
  add(
    "--at",
    metavar="C,...",
    help="FLOPs at which to give the frontier (default: the largest of the "
    "runs, and ten times that)",
  )
  add(
    "--bootstraps",
    type=int,
    default=1000,
    metavar="N",
    help="number of resamples for intervals (default %(default)s)",
  )
  add(
    "--seed",
    type=int,
    default=0,
    help="seed of the resamples (default %(default)s)",
  )
  add(
    "--hold-above",
    type=float,
    metavar="FLOPS",
    help="also fit only the runs of at most these FLOPs, and predict the rest",
  )
  add(
    "--out",
    metavar="DIR",
    help="folder for scaling.json and figures (with --score: score.json)",
  )


def _add_predictions(add) -> None:
  """Adds the flags that register and score a prediction."""
  add(
    "--register",
    metavar="FILE",
    help="write a prediction of a run that is not done yet; needs --at-params "
    "and --at-tokens",
  )
  add("--at-params", type=float, metavar="N", help="the run's parameters")
  add("--at-tokens", type=float, metavar="D", help="the run's tokens")
  add(
    "--score",
    metavar="FILE",
    help="compare a registered prediction with --measured or --workdir",
  )
  add("--measured", type=float, metavar="LOSS", help="the measured loss")
  add("--workdir", metavar="DIR", help="folder of the finished run")


def _check(args) -> None:
  """Raises InputError for bad or contradictory flags; reads no files."""
  from gpt_jax.lab.scaling import forecast, study

  if (args.csv is None) == (args.workdirs is None):
    found = "neither was" if args.csv is None else "both were"
    raise InputError(f"one of --csv and --workdirs is needed; {found} given")
  for name in ("measured", "workdir"):
    if getattr(args, name) is not None:
      raise InputError(f"--{name} goes with --score=FILE, which is not given")
  if args.workdirs is not None:
    for name in _COLUMNS:
      if getattr(args, name) is not None:
        raise InputError(
          f"--{name} names a column of a --csv; workdirs know their own"
        )
    if args.trust_units:
      raise InputError(
        "--trust-units is of a --csv's columns; workdirs know their units"
      )
  elif args.convention not in (None, "6N"):
    raise InputError(
      f"--convention is {args.convention}; a CSV file says nothing of the "
      "models' shapes: give 6N, or all of --params, --tokens and --flops"
    )
  require_choice("--form", args.form, study.FORMS)
  if args.budgets is not None and args.budget_tolerance is not None:
    raise InputError(
      "--budgets and --budget-tolerance both say what one budget is; give one"
    )
  if args.drop_highest < 0:
    raise InputError(f"--drop-highest is {args.drop_highest}; it must be >= 0")
  if args.bootstraps < study.MIN_RESAMPLES:
    raise InputError(
      f"--bootstraps is {args.bootstraps}; an interval needs "
      f"{study.MIN_RESAMPLES} or more"
    )
  if args.seed < 0:
    raise InputError(f"--seed is {args.seed}; it must be 0 or more")
  for name in ("budget_tolerance", "hold_above", "at_params", "at_tokens"):
    value = getattr(args, name)
    if value is not None and not (math.isfinite(value) and value > 0):
      raise InputError(
        f"--{name.replace('_', '-')} is {value}; it must be a finite number "
        "above 0"
      )
  together = (args.register, args.at_params, args.at_tokens)
  if any(together) and not all(together):
    raise InputError(
      "--register, --at-params and --at-tokens go together; "
      f"{sum(v is not None for v in together)} of them given"
    )
  if args.form == "isoflop":
    for name in ("register", "hold_above", "at"):
      if getattr(args, name) is not None:
        raise InputError(
          f"--{name.replace('_', '-')} needs the parametric form and --form is "
          "isoflop; give --form=both"
        )
  _budgets_of(args.at)
  if args.register is not None:
    forecast.check_new(args.register)
    files.require_folder("--register", os.path.dirname(args.register) or ".")


def _budgets_of(text: str | None) -> list[float]:
  budgets = []
  for word in text.split(",") if text is not None else []:
    try:
      value = float(word)
    except ValueError:
      value = math.nan
    if not (math.isfinite(value) and value > 0):
      raise InputError(
        f"--at is {text!r}; {word!r} must be a finite number of FLOPs above 0"
      )
    budgets.append(value)
  return budgets


def _read_points(args):
  from gpt_jax import flops
  from gpt_jax.lab.scaling import points as points_lib

  if args.csv is not None:
    columns = {k: getattr(args, k) for k in ("loss", *_COLUMNS)}
    points = points_lib.read_csv(args.csv, columns, args.trust_units)
  else:
    convention = args.convention or "6N"
    require_choice("--convention", convention, flops.CONVENTIONS)
    points = points_lib.read_workdirs(args.workdirs, args.loss, convention)
  return points.drop_highest(args.drop_highest)


def _score(args) -> int:
  """Scores a registered prediction; returns the exit code."""
  from gpt_jax.lab.scaling import forecast

  for name in ("csv", "workdirs", "register", "hold_above", "at"):
    if getattr(args, name) is not None:
      raise InputError(
        f"--{name.replace('_', '-')} does not go with --score, which fits "
        "nothing"
      )
  if (args.measured is None) == (args.workdir is None):
    found = "neither was" if args.measured is None else "both were"
    raise InputError(
      f"--score needs one of --measured and --workdir; {found} given"
    )
  record = forecast.load(args.score)
  measured = args.measured
  if args.workdir is not None:
    measured = forecast.measure(record, args.workdir, args.loss, args.score)
  if not (math.isfinite(measured) and measured > 0):
    raise InputError(
      f"--measured is {measured}; a loss is a finite number above 0"
    )
  result = forecast.score(record, measured)
  if args.out:
    path = os.path.join(os.path.abspath(args.out), "score.json")
    files.write_text(path, json.dumps(result, indent=2) + "\n")
  where = "inside" if result["is_inside"] else "outside"
  print(
    f"registered {record['registered']} from {record['num_points']} runs of at "
    f"most 1/{record['times_largest_fitted_flops']:.2f} of its compute\n"
    f"  predicted  {record['predicted']:.4f}, {record['level']} % interval "
    f"{record['low']:.4f} to {record['high']:.4f}\n"
    f"  measured   {measured:.4f}, {where} the interval\n"
    f"  error      {100 * result['relative_error']:+.2f} %"
  )
  return 0
