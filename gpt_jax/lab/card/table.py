"""Formats rows of lab.card as the tables of docs/performance.md."""

COLUMNS = {
  "step_ms": "ms a step",
  "ms_per_token": "ms a token",
  "tokens_per_s": "tokens/s",
  "mfu": "MFU",
  "bandwidth": "of HBM's bandwidth",
  "temporary_gib": "temporary GiB",
  "compile_s": "compiled in s",
}


def lines(rows: list[dict]) -> list[str]:
  """Returns lines: a Markdown table for each part, then its slowest kernels."""
  out = []
  for part in dict.fromkeys(row["part"] for row in rows):
    own = [row for row in rows if row["part"] == part]
    names = [n for n in COLUMNS if any(n in row for row in own)]
    failed = [row for row in own if row.get("error")]
    if not names and failed:
      out += [f"{part}: {r.get('row', 'all')}: {r['error']}" for r in failed]
      out.append("")
      continue
    if not names:
      is_compiled = any("is_compiled" in row for row in own)
      good = sum(row.get("is_right", is_compiled) is True for row in own)
      what = "programs compile" if is_compiled else "rows are right"
      out += [f"{part}: {good} of {len(own)} {what}", ""]
      continue
    heads = [COLUMNS[name] for name in names]
    out.append(f"| {part} on {own[0]['device']} | {' | '.join(heads)} |")
    out.append("|---" * (len(names) + 1) + "|")
    for row in own:
      cells = [_format(name, row.get(name)) for name in names]
      if row.get("error"):
        cells[0] = row["error"]
      out.append(f"| {row['row']} | {' | '.join(cells)} |")
    out.append("")
    for row in own:
      for name, ms, launches in row.get("kernels", [])[:12]:
        out.append(f"  {ms:9.3f} ms {launches:6g} x {name}")
  return out


def _format(name: str, value) -> str:
  if value is None:
    return ""
  if name in ("mfu", "bandwidth"):
    return f"{100 * value:.1f} %"
  return f"{value:,}"
