"""A copy of launch/ in a folder of its own, with stub Pythons on its PATH."""

import pathlib
import shutil
import signal
import subprocess

from harness import ROOT

SCRIPTS = ("launch/local.sh", "launch/test.sh", "launch/setup.sh", ".ci/run")
SCRIPTS += ("launch/processes.sh", "launch/study.sh", "launch/article.sh")
SCRIPTS += ("launch/families.sh",)
TOOLS = ("bash", "dirname", "cksum", "grep", "sed", "tail", "cat", "rm", "cp")
TOOLS += ("mkdir", "ln", "chmod", "sleep")
# A Python of which only the version, venv, pip and -m are known. "$0.version"
# is its version; the log has a line for each thing it was asked to do.
STUB = r"""#!/bin/bash
set -eu
log() { printf '%s\n' "$*" >>"$STUB_LOG"; }
case "$1 ${2:-}" in
  "-c "*) cat "$0.version" ;;
  "-m venv")
    log venv "$(cat "$0.version")"
    [[ -z ${STUB_NO_VENV:-} ]] || exit 1
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cp "$0.version" "$3/bin/python.version" ;;
  "-m pip")
    case "$*" in
      *--version*) ;;
      *"config list"*) echo "global.index-url='${STUB_INDEX:-}'" ;;
      *--target*)
        [[ -z ${STUB_NO_UV:-} ]] || exit 1
        while [[ $1 != --target ]]; do shift; done
        mkdir -p "$2/bin"
        cp "$STUB_UV" "$2/bin/uv" ;;
      *)
        log pip "${@: -1}"
        [[ -z ${STUB_NO_PIP:-} ]] || exit 1 ;;
    esac ;;
  "-m "*)
    shift
    log "$@"
    echo "pid $$ cwd $PWD data ${GPT_JAX_TEST_DATA:-none}"
    [[ -z ${JAX_PROCESS_ID:-} ]] ||
      log "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"
    if [[ ${STUB_WAITS:-} == *"${JAX_PROCESS_ID:-none}"* ]]; then
      trap 'log "$JAX_PROCESS_ID heard"; exit 75' TERM INT
      log "$JAX_PROCESS_ID waits"
      while :; do sleep 0.1; done
    fi
    [[ ${STUB_DIES:-none} != "${JAX_PROCESS_ID:-}" ]] || exit 9
    [[ $1 != "${STUB_FAILS:-}" ]] || exit 7 ;;
esac
"""
UV_STUB = r"""#!/bin/bash
printf '%s\n' "uv ${@: -1} ${UV_DEFAULT_INDEX:-}" >>"$STUB_LOG"
[[ -z ${STUB_UV_FAILS:-} ]] || exit 2
[[ -z ${STUB_UV_DIES:-} ]] || kill -9 $PPID
"""
SHIM = "#!/bin/bash\necho 'pyenv: no such version' >&2\nexit 127\n"
IS_DEAF = signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def hear_ctrl_c() -> None:
  signal.signal(signal.SIGINT, signal.SIG_DFL)


class House:
  """A copy of what is launched, and the machine around it."""

  def __init__(self, folder: pathlib.Path):
    self.root = folder / "a repo"
    self.bin = folder / "a bin"
    self.log_file = folder / "log"
    self.uv = folder / "uv"
    for script in SCRIPTS:
      (self.root / script).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / script, self.root / script)
    (self.root / "requirements.txt").write_text("jax==1\n")
    (self.root / "requirements-dev.txt").write_text("jax==1\nruff==1\n")
    self.bin.mkdir()
    for tool in TOOLS:
      (self.bin / tool).symlink_to(shutil.which(tool))
    self.uv.write_text(UV_STUB)
    self.uv.chmod(0o755)

  def add_python(self, name: str, version: str, script: str = STUB) -> None:
    (self.bin / name).write_text(script)
    (self.bin / name).chmod(0o755)
    (self.bin / f"{name}.version").write_text(version + "\n")

  def start(self, script: str, *words: str, cwd=None, **env: str):
    return subprocess.Popen(
      ["bash", str(self.root / script), *words],
      cwd=cwd or self.root,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      # Tests that run in the background inherit it ignored, and bash then
      # cannot hear it.
      preexec_fn=hear_ctrl_c if IS_DEAF else None,
      env={
        "PATH": str(self.bin),
        "STUB_LOG": str(self.log_file),
        "STUB_UV": str(self.uv),
        **env,
      },
    )

  def launch(self, *words: str, script="launch/local.sh", code=0, **more: str):
    """Returns (stdout, stderr, log lines) of one launch."""
    self.log_file.write_text("")
    process = self.start(script, *words, **more)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    return out, err, self.log_file.read_text().splitlines()
