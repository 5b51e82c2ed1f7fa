"""What the report of a sweep shows, in a browser too."""

import csv
import html
import json
import math
import os
import pathlib
import re
import struct
import zlib

import pytest
from harness import ROOT
from sweeps import load, make_run

import gpt_jax
from gpt_jax import exits, files
from gpt_jax.exits import InputError
from gpt_jax.lab.scaling import points
from gpt_jax.lab.sweep import folder, groups, losses, tables

NASTY = "<script>alert(\"1\")</script> & 'x' </td>"


def written(write, call_verb, tmp_path, lines, spoil=lambda sweep: None):
  """Makes the report of fabricated runs; returns its path."""
  path = write(*lines)
  sweep = load(path)
  for cell in sweep.cells:
    rate, seed = cell.config.optim.learning_rate, cell.config.seed
    end = 2.0 + rate + 0.01 * seed + 0.002 * math.sin(1e4 * rate + seed)
    make_run(tmp_path / "root", cell, (5.0, 3.0, end))
  spoil(sweep)
  words = [f"--config={path}", f"--workdir={tmp_path / 'root'}"]
  result = call_verb("lab.sweep", "report", *words)
  assert result.returncode == 0, result.stderr
  return tmp_path / "root" / "report.html", result.stdout


def rows_of(dom: str) -> list[list[str]]:
  """Returns the texts of the rows of the table of cells."""
  body = dom.split("<h2>Cells</h2>")[1].split("<tbody>")[1].split("</tbody>")[0]
  fields = [
    re.findall(r"<td.*?>(.*?)</td>", r, re.S) for r in body.split("<tr>")[1:]
  ]
  return [
    [html.unescape(re.sub("<.*?>", "", f)) for f in row] for row in fields
  ]


def test_a_report_of_one_cell(write, call_verb, tmp_path, browser):
  page, said = written(write, call_verb, tmp_path, ['add("alone")'])
  dom = browser(page, "--dump-dom")
  assert [row[1] for row in rows_of(dom)] == ["alone"]
  assert "no two groups of finished runs" in dom
  assert "What did not work" not in dom and "Sensitivity" not in dom
  assert "Telemetry" not in dom and tables.NOISE not in dom
  assert "written to" in said


def test_telemetry_is_drawn_and_its_noise_scale_told(
  write, call_verb, tmp_path, browser
):
  lines = ['add("watched", seeds=range(2))', 'add("not", {"seed": 7})']

  def spoil(sweep) -> None:
    for cell in sweep.cells[:2]:
      path = folder.path_of(str(tmp_path / "root"), cell.id)
      rows = [
        {
          "step": step,
          "telemetry/attn_logit_max/00": 1.0 + step,
          "telemetry/attn_logit_max/01": 2.0 + step,
          "telemetry/grad_norm/hidden": 0.5,
          "telemetry/grad_square": 0.25,
          "telemetry/grad_variance": 5.0 + cell.config.seed,
        }
        for step in (1, 2)
      ]
      with open(os.path.join(path, "metrics.jsonl"), "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

  page, _ = written(write, call_verb, tmp_path, lines, spoil)
  dom = browser(page, "--dump-dom")
  assert dom.count("<polyline") == 3 + 2 * 2  # losses, and two of two figures
  assert "attn_logit_max, the largest over layers" in dom
  assert "grad_norm/hidden</text>" in dom and "grad_square" not in dom
  at = re.findall(
    "<th[^>]*>([^<]*)</th>", dom.split("<h2>Cells</h2>")[1]
  ).index(tables.NOISE)
  assert [row[at] for row in rows_of(dom)] == ["20.0", "24.0", ""]


@pytest.mark.wide
def test_a_report_of_many_cells_is_looked_at(
  write, call_verb, tmp_path, browser
):
  lines = [
    "for layers in (1, 2, 3, 4):",
    "  for i in range(10):",
    "    add({'model.num_layers': layers, 'optim.learning_rate': 0.01 * 2**i},",
    "        seeds=range(5))",
  ]
  page, _ = written(write, call_verb, tmp_path, lines)
  dom = browser(page, "--dump-dom")
  rows = rows_of(dom)
  assert len(rows) == 200
  assert dom.count("<polyline") == 200 + 10 + 4
  # Sorted by the reader, by number and not by text.
  text = page.read_text()
  click = "<script>document.querySelectorAll('.sort th')[4].click()</script>"
  page.write_text(text.replace("</body>", f"{click}</body>"))
  rates = [float(row[4]) for row in rows_of(browser(page, "--dump-dom"))]
  assert rates == sorted(rates) and rates != [float(row[4]) for row in rows]
  # It reaches for nothing outside the file.
  assert not re.search(r"(src|href)=.https?:|@import|url\((?!#)", text)
  for name, flag in {"light": "1", "dark": "0"}.items():
    picture = tmp_path / f"{name}.png"
    browser(
      page,
      f"--screenshot={picture}",
      "--window-size=1100,1400",
      f"--blink-settings=preferredColorScheme={flag}",
    )
    level = brightness(picture)
    assert level > 200 if name == "light" else level < 70, (name, level)


MEASURE = """<script>addEventListener("load", () => {
  const table = document.querySelector("td svg").closest("table");
  document.title = [table.querySelector("svg").getBoundingClientRect().width,
    table.offsetWidth - table.parentNode.clientWidth].join(" ");
});</script></body>"""


def test_the_bar_of_a_comparison_is_small_and_its_table_fits(
  write, call_verb, tmp_path, browser
):
  lines = ['add("a", seeds=[1])', 'add("b", {"optim.beta1": 0.5}, seeds=[1])']
  page, _ = written(write, call_verb, tmp_path, lines)
  text = page.read_text()
  assert "0 comparisons" not in text  # of one seed nothing is corrected
  page.write_text(text.replace("</body>", MEASURE))
  dom = browser(page, "--dump-dom", "--window-size=1400,900")
  assert re.findall("<title>(.*)</title>", dom) == ["120 0"]


def brightness(path) -> float:
  """Returns the mean of the bytes of a PNG's first and last lines, unfiltered.

  Enough to tell a light ground from a dark one.
  """
  data, at, packed = path.read_bytes(), 8, b""
  while at < len(data):
    size, kind = struct.unpack(">I4s", data[at : at + 8])
    if kind == b"IHDR":
      width, _, depth, color = struct.unpack(">IIBB", data[at + 8 : at + 18])
    if kind == b"IDAT":
      packed += data[at + 8 : at + 8 + size]
    at += 12 + size
  assert depth == 8
  channels = {2: 3, 6: 4}[color]
  line = zlib.decompress(packed)[1 : 1 + width * channels]
  # The first pixel of the first line is its own value under every filter.
  return sum(line[:3]) / 3


def test_a_report_says_what_failed_and_escapes_names(
  write, call_verb, tmp_path, browser
):
  lines = [
    f"nasty = {NASTY!r}",
    'add("base", seeds=range(3))',
    'add(nasty, {"optim.learning_rate": 0.2}, seeds=range(3))',
    'add("lost", {"optim.learning_rate": 0.3})',
    'add("bad", {"optim.learning_rate": -1.0})',
  ]

  def spoil(sweep) -> None:
    path = folder.path_of(str(tmp_path / "root"), sweep.cells[-1].id)
    os.remove(os.path.join(path, "plots", "loss.svg"))
    reason = f"killed by SIGKILL {NASTY}"
    folder.release(path, {"code": -9, "is_stopped": False, "reason": reason})

  page, said = written(write, call_verb, tmp_path, lines, spoil)
  dom = browser(page, "--dump-dom")
  assert "alert(" not in "".join(re.findall(r"<script.*?</script>", dom, re.S))
  assert dom.count("<script") == 1
  shown = [row[1] for row in rows_of(dom)]
  assert shown == ["base"] * 3 + [NASTY] * 3 + ["lost"]
  trouble = html.unescape(dom.split("What did not work")[1].split("<h2>")[0])
  assert f"killed by SIGKILL {NASTY}" in trouble
  assert "optim.learning_rate is -1.0" in trouble
  assert f"{NASTY}: +0.2" in said and "worse (p = " in said
  # What is finished can be fitted.
  table = points.read_csv(
    str(page.with_suffix(".csv")),
    {"loss": "loss", "params": "params", "tokens": "tokens", "flops": "flops"},
    is_trusted=True,  # these runs have fewer tokens than units.py expects
  )
  assert len(table) == 6 and table.loss.min() > 1.9


# What a diverged run may have left: its last rows, and how its process ended.
LOST = {
  "told": ([{"step": 3, "train/loss": 5.5475}], {"code": exits.DIVERGED}),
  "finished": (
    [
      {"step": 3, "train/loss": 5.5475},
      {"step": 12, "train/loss": 5.5475, "train/num_skipped": 4},
      {"step": 12, "eval/valid/num_tokens": 9},
    ],
    None,
  ),
  "job": (
    [
      {"step": 3, "train/loss": 5.5475, "train/num_skipped": 0},
      {"step": 6, "train/num_skipped": 3},
    ],
    None,
  ),
}


@pytest.mark.parametrize("how", LOST)
def test_a_diverged_cell_is_shown_as_one(how, write, call_verb, tmp_path):
  rows, ended = LOST[how]

  def spoil(sweep) -> None:
    for cell in sweep.cells[-2:]:
      path = folder.path_of(str(tmp_path / "root"), cell.id)
      text = "".join(json.dumps(row) + "\n" for row in rows)
      pathlib.Path(path, "metrics.jsonl").write_text(text)
      if how != "finished":
        os.remove(os.path.join(path, "plots", "loss.svg"))
      if ended:
        how_ended = {"is_stopped": False, "reason": "not finite"}
        folder.release(path, ended | how_ended)
      for name in os.listdir(path):
        os.utime(os.path.join(path, name), (1, 1))

  lines = [
    "for rate in (0.1, 0.2, 0.3):",
    "  add(f'rate {rate}', {'optim.learning_rate': rate}, seeds=range(2))",
  ]
  page, said = written(write, call_verb, tmp_path, lines, spoil)
  assert "rate 0.3: diverged (2 of 2 seeds), against rate 0.1\n" in said
  assert re.search(r"rate 0\.2: \+\d", said)
  text = page.read_text()
  assert "5.5475" not in text and text.count("l8,8m0,-8l-8,8") == 2
  assert "diverged (2 of 2 seeds)</td>" in text
  assert len(page.with_suffix(".csv").read_text().splitlines()) == 5
  table = page.with_name("report-comparisons.csv").read_text().splitlines()
  assert table[-1].startswith("rate 0.3,rate 0.1,2,nats per token,,,,,diverged")
  listed = call_verb("lab.sweep", "list", f"--workdir={tmp_path / 'root'}")
  for row in listed.stdout.splitlines():
    if "rate 0.3" in row:
      assert row.split()[1] == "diverged" and row.split()[3] == "-"
  assert "4 done, 2 diverged" in listed.stdout and "5.5475" not in listed.stdout


def test_losses_of_other_texts_or_tokens_have_no_difference(
  write, call_verb, tmp_path
):
  other = tmp_path / "other.txt"
  other.write_text("another text " * 99)
  changes = {
    "chars": {"data.tokenizer": "chars"},
    "short": {"data.seq_len": 16},
    "text": {"data.source": f"text:{other}"},
    "share": {"data.valid_frac": 0.2},
    "rate": {"optim.learning_rate": 0.5},
  }
  lines = ['add("base", seeds=range(2))']
  lines += [f"add('{n}', {c}, seeds=range(2))" for n, c in changes.items()]
  path, root = write(*lines), tmp_path / "root"
  for cell in load(path).cells:
    make_run(root, cell, (5.0, 2.0 + 0.01 * cell.config.seed))
    rows = pathlib.Path(folder.path_of(str(root), cell.id), "metrics.jsonl")
    bits = 1.5 if cell.name == "short" else 1.25 + 0.001 * cell.config.seed
    row = {"step": 12, "eval/valid/bits_per_byte": bits}
    rows.write_text(rows.read_text() + json.dumps(row) + "\n")
  words = [f"--config={path}", f"--workdir={root}"]
  result = call_verb("lab.sweep", "report", *words)
  assert result.returncode == 0, result.stderr
  said = dict(line.split(": ", 1) for line in result.stdout.splitlines()[:-1])
  assert said["rate"].startswith("+0.0000 [")
  assert said["chars"].startswith("+0.0000 bits per byte [")
  assert said["short"].startswith("+0.2495 bits per byte [")
  for name in ("text", "share"):
    assert said[name].startswith("no verdict against base: their validation")
  assert "data.source" in said["text"] or "differ" in said["text"]
  text = (root / "report.html").read_text()
  assert "no lowest loss" in text and "<dt>lowest loss" not in text


def test_the_text_itself_decides_whether_losses_compare(write, tmp_path):
  path = write('add("a")', 'add("b", seed=1)')
  a, b = load(path).cells
  make_run(tmp_path, a)
  make_run(tmp_path, b)
  record = pathlib.Path(folder.path_of(str(tmp_path), b.id), "config.json")
  other = json.loads(record.read_text()) | {"data_fingerprint": "1" * 64}
  both = lambda: [folder.read(str(tmp_path), cell.id) for cell in (a, b)]
  assert groups.find_unit(both()) == (losses.NATS, "")
  record.write_text(json.dumps(files.seal(other)))
  unit, why = groups.find_unit(both())
  assert unit == "" and "prepared sets differ" in why


FORMULAS = ("=1+1", "+1", "-1", "@x", " =1", "\t=1", "\r=1")


def test_no_name_is_a_formula_or_steers_a_terminal(write, call_verb, tmp_path):
  names = [*FORMULAS, "\x1b[2J\x1b]0;title\x07", "two\nlines", "\x9b1m"]
  lines = [
    f"add({name!r}, {{'optim.learning_rate': 0.1 + {i}}})"
    for i, name in enumerate(names)
  ]
  page, said = written(write, call_verb, tmp_path, lines)
  root = f"--workdir={tmp_path / 'root'}"
  listed = call_verb("lab.sweep", "list", root).stdout
  shown = said + listed + page.read_text()
  assert not set(shown) & {"\x1b", "\x07", "\x9b", "\r"}
  assert "\\x1b[2J" in said and len(listed.splitlines()) == len(names) + 2
  for table in (
    page.with_suffix(".csv"),
    page.with_name("report-comparisons.csv"),
  ):
    with open(table, newline="") as file:
      for row in list(csv.reader(file))[1:]:
        for cell in row:
          is_number = re.fullmatch(r"[-+]?[\d.e+-]+", cell) and cell != "+1"
          assert is_number or not cell.lstrip().startswith(("=", "+", "-", "@"))
  assert tables.inert(-0.5) == -0.5  # a number stays one


def test_the_baseline_is_the_one_that_is_named(write, call_verb, tmp_path):
  path = write('add("a")', 'add("b", {"optim.learning_rate": 0.5})')
  for cell in load(path).cells:
    make_run(tmp_path, cell)
  words = ["report", f"--config={path}", f"--workdir={tmp_path}"]
  result = call_verb("lab.sweep", *words, "--baseline=b")
  assert result.stdout.startswith("a: +0.0000 against b"), result.stderr
  result = call_verb("lab.sweep", *words, "--baseline=c")
  assert result.returncode == 2 and "--baseline=c is no name" in result.stderr


def test_a_sweep_in_python_is_the_table_of_its_report(
  write, call_verb, tmp_path, monkeypatch, capsys
):
  rate = "optim.learning_rate"
  path = write(
    f'add("slow", seeds=[0, 1], **{{"{rate}": 1e-3}})',
    f'add("fast", **{{"{rate}": 1e-2}})',
  )
  sweep, root = load(path), tmp_path / "root"
  for cell, is_done in zip(sweep.cells, (True, False, True), strict=True):
    make_run(root, cell, (3.0, 2.0 + cell.config.seed), is_done)
  words = f"--config={path}", f"--workdir={root}"
  assert call_verb("lab.sweep", "report", *words).returncode == 0
  with open(root / "report.csv", newline="") as file:
    head, *rows = csv.reader(file)
  cells = gpt_jax.sweep(str(root))
  assert list(cells) == ["state", *head] and rate in cells
  assert {len(column) for column in cells.values()} == {3}
  done = [i for i, state in enumerate(cells["state"]) if state == folder.DONE]
  as_text = lambda value: "" if value is None else str(value)
  assert rows == [[as_text(cells[k][i]) for k in head] for i in done]
  assert cells["name"] == ["slow", "slow", "fast"]
  assert cells["seed"] == [0, 1, 0] and cells[rate] == [1e-3, 1e-3, 1e-2]
  assert cells["loss"] == [2.0, None, 2.0] and done == [0, 2]
  # The page's lines.
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "decays").symlink_to(root)
  monkeypatch.chdir(tmp_path)
  page = (ROOT / "docs" / "python.md").read_text()
  (block,) = re.findall(r"```python\n(cells = .*?)```", page, re.S)
  exec(block, {"gpt_jax": gpt_jax})
  assert "{'slow': 2.0, 'fast': 2.0}" in capsys.readouterr().out
  with pytest.raises(InputError, match="holds no cell"):
    gpt_jax.sweep(str(tmp_path))
