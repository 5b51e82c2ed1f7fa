"""Tables and flags that cannot be meant are refused in one sentence."""

import csv
import os

import pytest
from harness import ROOT
from laws import COLUMNS, assert_refused

import gpt_jax
from gpt_jax.exits import InputError

# Cells of line 4, by column: what the sentence must say.
CELLS = {
  ("loss", ""): ("column loss (--loss) is missing in line 4",),
  ("loss", "nan"): ("not finite in line 4 (nan)",),
  ("loss", "-2.5"): ("negative in line 4 (-2.5)",),
  ("loss", "0"): ("zero in line 4 (0)", "above 0"),
  ("loss", "low"): ("not a number in line 4 (low)",),
  ("C", "inf"): ("column C (--flops) is not finite in line 4 (inf)",),
  ("C", "1e999"): ("not finite in line 4 (1e999)",),
  ("N", "1_000"): ("column N (--params) is not a number in line 4",),
}


@pytest.mark.parametrize("cell", CELLS, ids="=".join)
def test_a_bad_cell_is_named_by_its_line(runs_csv, tmp_path, call_verb, cell):
  column, text = cell
  rows = list(csv.reader(runs_csv.read_text().splitlines()))
  rows[3][rows[0].index(column)] = text
  runs_csv.write_text("\n".join(map(",".join, rows)) + "\n")
  out = tmp_path / "out"
  words = f"--csv={runs_csv}", *COLUMNS, f"--out={out}"
  assert_refused(call_verb("lab.scaling", *words), str(runs_csv), *CELLS[cell])
  assert not out.exists()


def test_many_bad_cells_are_counted_and_short_rows_are_missing(
  runs_csv, call_verb
):
  lines = runs_csv.read_text().splitlines()
  lines[1:8] = [",".join(line.split(",")[:2]) for line in lines[1:8]]
  lines[9] = lines[9].rpartition(",")[0] + ",-1"
  lines.insert(1, "")
  runs_csv.write_text("\n".join(lines))
  result = call_verb("lab.scaling", f"--csv={runs_csv}", *COLUMNS)
  said = "missing in line 3, line 4, line 5, line 6, line 7 and 2 more"
  assert_refused(result, said, "negative in line 11 (-1)")


# Text of a file: what the sentence must say.
FILES = {
  "": ("is empty", "header line"),
  "\n\n": ("is empty",),
  "N,C,loss\n": ("a header and no rows",),
  "N,C,losses\n1,2,3\n": ("--loss=loss is not in", "did you mean losses?"),
  "N,N,C,loss\n1,1,2,3\n": ("--params=N stands twice in",),
  "N;C;loss\n1;2;3\n": ("has ';' between its columns", "takes commas"),
  "N\tC\tloss\n1\t2\t3\n": (r"has '\t' between its columns",),
  "N\n1\n": ("--loss=loss is not in the header",),
  'N,C,loss\n1,2,"3\n': ("line 2", "comma-separated"),
  "N,C,loss\n" + "1e8,1e18,3\n" * 9: ("1 distinct point", "need 6 or more"),
  "N,C,loss\n" + "".join(f"{1 + i}e8,1e18,3\n" for i in range(5)): (
    "5 distinct points are too few for the form",
    "need 6 or more",
  ),
  "N,C,loss\n" + "".join(f"{1 + i % 2}e8,{2 + i}e18,3\n" for i in range(9)): (
    "2 distinct value(s) of params",
    "3 or more",
  ),
  "N,C,loss\n"
  + "".join(f"{1 + i % 3}e8,{2 + i}e18,{1 + 0.1 * i}\n" for i in range(12)): (
    "does not fall with",
  ),
}


@pytest.mark.parametrize("text", FILES, ids=range(len(FILES)))
def test_a_file_that_is_no_table_of_runs_is_refused(tmp_path, call_verb, text):
  path, out = tmp_path / "a.csv", tmp_path / "out"
  path.write_text(text)
  words = f"--csv={path}", *COLUMNS, f"--out={out}"
  assert_refused(call_verb("lab.scaling", *words), *FILES[text])
  assert not out.exists()


def test_what_is_no_text_file_is_refused(tmp_path, call_verb):
  path = tmp_path / "a.csv"
  call = lambda: call_verb("lab.scaling", f"--csv={path}", *COLUMNS)
  assert_refused(call(), f"{path} does not exist", "header line")
  path.write_bytes(b"N,C,loss\n1,2,\xe9\n")
  assert_refused(call(), "is not UTF-8: byte 0xe9 at offset 13")
  # Far into the file, where a decoder's blocks would count anew.
  path.write_bytes(b"N,C,loss\n" + b"1e8,1e18,2\n" * 3000 + b"1,2,\xe9\n")
  assert_refused(call(), "is not UTF-8: byte 0xe9 at offset 33,013")
  path.unlink()
  path.mkdir()
  assert_refused(call(), "is a folder")
  for name, clause in (("fifo", "named pipe"), ("zero", "a device")):
    odd = tmp_path / name
    os.mkfifo(odd) if name == "fifo" else odd.symlink_to("/dev/zero")
    result = call_verb("lab.scaling", f"--csv={odd}", *COLUMNS)
    assert_refused(result, clause)
    result = call_verb("lab.scaling", f"--score={odd}", "--measured=2")
    assert_refused(result, clause)


# Flags, beside --csv and COLUMNS: what the sentence must say.
FLAGS = {
  ("--workdirs=x",): ("one of --csv and --workdirs", "both were given"),
  ("--tokens=N",): ("both name the column N",),
  ("--params=M",): ("--params=M is not in the header",),
  ("--convention=6N-no-embed",): ("says nothing of the models' shapes",),
  ("--form=cubic",): ("--form is 'cubic'", "parametric, isoflop, both"),
  ("--budgets=C", "--budget-tolerance=0.2"): ("both say what one budget is",),
  ("--budget-tolerance=-1",): ("--budget-tolerance is -1.0", "above 0"),
  ("--drop-highest=-1",): ("--drop-highest is -1",),
  ("--drop-highest=40",): ("--drop-highest is 40", "40 points"),
  ("--drop-highest=35",): ("5 distinct points are too few",),
  ("--bootstraps=3",): ("--bootstraps is 3", "20 or more"),
  ("--bootstraps=many",): ("--bootstraps", "many"),
  ("--seed=-1",): ("--seed is -1",),
  ("--at=1e20,lots",): ("--at is '1e20,lots'", "'lots'"),
  ("--at=1e20,-1",): ("'-1'", "finite number of FLOPs above 0"),
  ("--at=",): ("--at is ''",),
  ("--hold-above=inf",): ("--hold-above is inf",),
  ("--hold-above=1e30",): ("no run has more FLOPs",),
  ("--hold-above=1e15",): ("below, 0 distinct points are too few",),
  ("--register=r.json",): ("go together", "1 of them given"),
  ("--at-params=1e9", "--at-tokens=1e9"): ("go together", "2 of them given"),
  ("--form=isoflop", "--at=1e20"): ("--at needs the parametric form",),
  ("--form=isoflop", "--budget-tolerance=1e-9"): (
    "0 budgets have a minimum",
    "2 or more",
  ),
  ("--measured=2",): ("--measured goes with --score=FILE",),
  ("--config.seed=1",): ("--config.seed does nothing here",),
  ("--boot=1",): ("unknown argument --boot",),
}


@pytest.mark.parametrize("words", FLAGS, ids=" ".join)
def test_flags_that_cannot_be_meant_are_refused(
  runs_csv, tmp_path, call_verb, words
):
  out = tmp_path / "out"
  given = f"--csv={runs_csv}", *COLUMNS, *words, f"--out={out}"
  assert_refused(call_verb("lab.scaling", *given), *FLAGS[words])
  assert not out.exists()


# Flags without a --csv.
BARE = {
  (): ("one of --csv and --workdirs", "neither was given"),
  ("--csv=x", "--params=N", "--tokens=D"): ("--loss is missing",),
  ("--csv=x", "--loss=l", "--params=N"): ("only --params",),
  ("--csv=x", "--loss=l"): ("found none",),
  ("--workdirs=x", "--params=N"): ("--params names a column of a --csv",),
  ("--workdirs=none/*",): ("--workdirs=none/* matches no folder",),
  ("--workdirs=x", "--convention=7N"): ("--convention is '7N'", "6N, 6N-no"),
  ("--score=none", "--measured=2"): ("none does not exist",),
  ("--score=none",): ("one of --measured and --workdir", "neither"),
  ("--score=none", "--measured=2", "--csv=x"): ("--csv does not go with",),
  ("--score=README.md", "--measured=2"): (
    "README.md is not JSON",
    "--register has written",
  ),
}


@pytest.mark.parametrize("words", BARE, ids=" ".join)
def test_a_command_that_says_too_little_is_told_what_is_missing(
  call_verb, monkeypatch, words
):
  monkeypatch.chdir(ROOT)
  assert_refused(call_verb("lab.scaling", *words), *BARE[words])


def test_a_folder_that_cannot_be_written_is_refused_first(
  runs_csv, tmp_path, call_verb
):
  (tmp_path / "file").write_text("mine")
  given = f"--csv={runs_csv}", *COLUMNS
  for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none"):
    result = call_verb("lab.scaling", *given, f"--out={out}")
    assert_refused(result, "--out: ")
  assert (tmp_path / "file").read_text() == "mine"


def test_runs_in_python_may_be_named_by_a_path(tmp_path):
  with pytest.raises(InputError, match="nowhere matches no folder"):
    gpt_jax.scaling(tmp_path / "nowhere")
