"""Formats a plan as text."""

from gpt_jax.lab.plan import aot, roofline
from gpt_jax.machine import console

_SCREEN = console.Console()
_MARKS = {
  "exact": "by the shardings",
  "compiled": "compiled",
  "derived": "derived from the compiled step",
  "estimated": "estimated",
}


def say(line: str = "") -> None:
  """Prints a line immediately."""
  _SCREEN.say(line)


def heading(config, topology) -> str:
  """Returns the first line, before anything is compiled."""
  what = "compiling the step" if aot.can_compile(topology) else "estimating"
  return f"gpt_jax: {what} for {describe_topology(topology)} ..."


def describe_topology(topology) -> str:
  """Returns "2 slices of v5p:8x8x16, 2048 chips"."""
  slices = ""
  if topology.num_slices > 1 and topology.platform == "tpu":
    slices = f"{topology.num_slices} slices of "
  chips = "chip" if topology.num_chips == 1 else "chips"
  return f"{slices}{topology.name}, {topology.num_chips:,} {chips}"


def lines(plan: dict) -> list[str]:
  """Returns the report's lines."""
  found = _run_lines(plan) + ["", *_memory_lines(plan)]
  if plan["collectives"]:
    found += ["", *_collective_lines(plan)]
  if plan["roofline"]:
    found += ["", *_roofline_lines(plan)]
  if plan.get("search"):
    found += ["", *_search_lines(plan["search"])]
  if plan.get("remark"):
    found += ["", plan["remark"]]
  return found


def _run_lines(plan: dict) -> list[str]:
  count, size = console.format_count, plan["tokens_per_step"]
  c = plan["config"]
  tokens = plan["tokens"]
  rows = [
    ("parameters", f"{plan['parameters']:,}"),
    ("mesh", plan["mesh_text"]),
    (
      "step",
      f"{c['train.global_batch_size']:,} sequences of {c['data.seq_len']:,} = "
      f"{size:,} tokens in {c['train.num_microbatches']} parts; remat "
      f"{c['model.remat']}",
    ),
    (
      "run",
      f"{plan['num_steps']:,} steps = {count(tokens)} tokens = "
      f"{plan['flops_per_token'] * tokens:.2e} FLOPs (PaLM's convention)",
    ),
    _checkpoint_row(plan),
  ]
  if plan["cache_bytes_per_token"] is not None:
    held = console.format_bytes(plan["cache_bytes_per_token"])
    rows.append(("decoding", f"caches {held} a token"))
  if plan["compile_seconds"] is not None:
    rows.append(("compiled", f"in {plan['compile_seconds']:.0f} s"))
  return _columns(rows)


def _checkpoint_row(plan: dict) -> tuple[str, str]:
  c, size = plan["checkpoint"], console.format_bytes
  hosts = f"{c['hosts']:,} host" + ("s" if c["hosts"] > 1 else "")
  return (
    "checkpoint",
    f"{size(c['bytes'])} every {c['every_steps']:,} steps, "
    f"{size(c['bytes'] * c['kept'])} kept; "
    f"{console.format_seconds(c['seconds'])} to write if each of {hosts} "
    "writes 1 GB/s",
  )


def _memory_lines(plan: dict) -> list[str]:
  m, size = plan["memory"], console.format_bytes
  head = "memory of a device"
  if m["refusal"]:
    head += ", of which the compiler gave only the sum"
  rows = [
    (kind, f"{size(n):>10}  {_MARKS[m['origin'][kind]]}")
    for kind, n in m["kinds"].items()
  ]
  basis = "compiled" if plan["basis"] == "compiled" else "estimated"
  rows.append(("in all", f"{size(m['peak']):>10}  {basis}"))
  if m["available"]:
    share = f"{100 * m['peak'] / m['available']:.0f} % used"
    rows.append(("there is", f"{size(m['available']):>10}  {share}"))
  if m["host"]:
    rows.append(("offloaded", f"{size(m['host']):>10}  in the host's memory"))
  found = [head, *_columns(rows)]
  if not m["fits"]:
    over = m["peak"] - m["available"]
    found += ["", f"does not fit: {size(over)} too much on each device"]
    if m["refusal"]:
      found.append(f"the compiler: {m['refusal']}")
    found.append(_remedy_line(plan["remedy"]))
  return found


def _remedy_line(remedy: dict | None) -> str:
  if remedy is None:
    return "no change that is known here makes it fit; take a larger slice"
  size = console.format_bytes(remedy["bytes"])
  return f"the nearest that fits: {remedy['flags']} ({size}, {remedy['basis']})"


def _collective_lines(plan: dict) -> list[str]:
  found = [
    f"  {'between chips, a step':<21} {'mesh axis':<13} {'times':>7} "
    f"{'a chip gets':>12} {'links':>9} {'network':>9}".removeprefix("  ")
  ]
  seconds = lambda s: f"{1000 * s:,.1f} ms" if s else "-"
  for t in plan["collectives"][:14]:
    size = console.format_bytes(t["bytes"])
    found.append(
      f"  {t['kind']:<19} {t['axis']:<13} {t['count']:>7,.0f} {size:>12} "
      f"{seconds(t['ici_seconds']):>9} {seconds(t['dcn_seconds']):>9}"
    )
  rest = plan["collectives"][14:]
  if rest:
    size = console.format_bytes(sum(t["bytes"] for t in rest))
    found.append(f"  and {len(rest)} smaller: {size}")
  return found


def _roofline_lines(plan: dict) -> list[str]:
  r = plan["roofline"]
  ms = lambda s: f"{1000 * s:,.1f} ms"
  rows = [
    ("compute", ms(r["compute"])),
    ("memory", ms(r["hbm"])),
    ("op by op", f"{ms(r['ops'])}, the longer of the two for each"),
    ("links", ms(r["ici"])),
  ]
  if r["dcn"]:
    rows.append(("network", ms(r["dcn"])))
  names = {"compute": "compute", "hbm": "memory", "ici": "links"}
  binding = names.get(r["binding"], "network")
  rows.append(("step", f"{ms(r['step'])} at best, bound by {binding}"))
  rows.append(
    ("speed", f"{r['tokens_per_second_per_chip']:,.0f} tokens/s/chip")
  )
  rows.append(("run at best", _time_and_price(r, plan["price"])))
  if r["expected"]:
    rows.append(("run expected", _time_and_price(r["expected"], plan["price"])))
  basis = (
    "roofline of the compiled step, an upper bound of speed"
    if plan["basis"] == "compiled"
    else "roofline, estimated by arithmetic"
  )
  found = [basis, *_columns(rows)]
  if r["expected"]:
    found += ["", *_flops_lines(plan)]
    is_tpu = bool(plan["topology"]["chip"]["shapes"])
    ratios = roofline.RATIOS["tpu" if is_tpu else "gpu"]
    runs = "published TPU runs" if is_tpu else "runs on one H100"
    where = (
      "python -m gpt_jax.lab.plan.published"
      if is_tpu
      else "docs/performance.md"
    )
    found.append(
      f"  expected: the bound times {r['expected']['ratio']:.2f}, the median "
      f"of {len(ratios)} {runs} ({min(ratios):.2f} to {max(ratios):.2f}; "
      f"{where})"
    )
  if plan["unknown_loops"]:
    found.append(
      f"  {len(plan['unknown_loops'])} loops of unknown length counted once"
    )
  return found


def _time_and_price(run: dict, price: float | None) -> str:
  text = (
    f"{console.format_seconds(run['hours'] * 3600)} = "
    f"{run['chip_hours']:,.{0 if run['chip_hours'] > 100 else 1}f} chip-hours"
  )
  if price is not None:
    text += f" = {run['chip_hours'] * price:,.2f} at {price:g} a chip-hour"
  return text


def _flops_lines(plan: dict) -> list[str]:
  """Returns FLOPs per token by each convention, and shares of the peak."""
  r = plan["roofline"]
  hardware = plan["hardware_flops"] / plan["tokens_per_step"]
  share = lambda part: f"{100 * part:.1f} %"
  rows = [
    ("", "model, PaLM", "model, visible", "hardware"),
    (
      "FLOPs a token",
      *(
        f"{n:.3e}"
        for n in (
          plan["flops_per_token"],
          plan["masked_flops_per_token"],
          hardware,
        )
      ),
    ),
    ("at best", "", f"MFU {share(r['mfu'])}", f"HFU {share(r['hfu'])}"),
    (
      "expected",
      "",
      f"MFU {share(r['expected']['mfu'])}",
      f"HFU {share(r['hfu'] / r['expected']['ratio'])}",
    ),
  ]
  found = ["  {:<13}  {:>11}  {:>14}  {:>11}".format(*row) for row in rows]
  return [
    *found,
    "  PaLM counts all scores; visible, those that the mask leaves; hardware, "
    "what runs",
  ]


def _search_lines(search: dict) -> list[str]:
  found = [
    f"searched {search['considered']:,} settings, compiled "
    f"{search['compiled']}; the best:",
    "  tokens/s/chip    MFU    memory  flags",
  ]
  share = lambda mfu: f"{100 * mfu:>4.1f}%" if mfu else "    -"
  for row in search["rows"]:
    found.append(
      f"  {row['tokens_per_second_per_chip']:>13,.0f}  "
      f"{share(row['mfu'])}  {console.format_bytes(row['peak']):>8}  "
      f"{row['flags']} ({row['basis']})"
    )
  return found


def _columns(rows: list[tuple[str, str]]) -> list[str]:
  width = max(len(name) for name, _ in rows)
  return [f"  {name:<{width}}  {value}" for name, value in rows]
